//! What people say about the credentials of databases: how old they may be, and which are to be replaced.

use conme_api::{Comune, keys};
use jiff::{SignedDuration, Timestamp};

/// Reads a span of time such as `90d`, `2160h`, `30m`, `45s`. None for what the schema refuses.
pub fn duration(text: &str) -> Option<SignedDuration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: i64 = number.parse().ok().filter(|number| *number >= 0)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return None,
    };
    number.checked_mul(seconds).map(SignedDuration::from_secs)
}

/// The times that the annotation `rotate-credentials` names for a database: once such a time has come, every credential
/// that is older has to be replaced.
pub fn rotation_requested(comune: &Comune, database: &str) -> Vec<Timestamp> {
    words(comune)
        .filter_map(|word| parse(word).ok())
        .filter(|(name, _)| *name == database || *name == ALL)
        .map(|(_, time)| time)
        .collect()
}

/// What is wrong with the annotation `rotate-credentials`, in words; empty when nothing is.
pub fn not_understood(comune: &Comune) -> Vec<String> {
    let known =
        |name: &str| name == ALL || comune.spec.databases.iter().any(|database| database.name == name);
    words(comune)
        .filter_map(|word| match parse(word) {
            Ok((name, _)) if known(name) => None,
            Ok((name, _)) => Some(format!(
                "the annotation {} names the database `{name}`, which is not declared",
                keys::ROTATE_CREDENTIALS
            )),
            Err(()) => Some(format!(
                "`{}` in the annotation {} is not understood: write DATABASE@TIME, such as \
                 protocollo@2026-11-22T09:31:42Z, or *@TIME for all",
                word.chars().take(100).collect::<String>(),
                keys::ROTATE_CREDENTIALS
            )),
        })
        .collect()
}

const ALL: &str = "*";

fn words(comune: &Comune) -> impl Iterator<Item = &str> {
    let annotations = comune.metadata.annotations.as_ref();
    let value = annotations.and_then(|annotations| annotations.get(keys::ROTATE_CREDENTIALS));
    value.map(String::as_str).unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty())
}

fn parse(word: &str) -> Result<(&str, Timestamp), ()> {
    let (name, time) = word.split_once('@').ok_or(())?;
    Ok((name, time.parse().map_err(|_| ())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    fn asking(words: &str) -> Comune {
        let mut comune = fixtures::full_comune();
        comune.metadata.annotations = Some([(keys::ROTATE_CREDENTIALS.into(), words.into())].into());
        comune
    }

    #[test]
    fn spans_of_time() {
        assert_eq!(duration("90d"), Some(SignedDuration::from_hours(2160)));
        assert_eq!(duration("2160h"), duration("90d"));
        assert_eq!([duration("0s"), duration("2m")].map(|d| d.map(|d| d.as_secs())), [Some(0), Some(120)]);
        for bad in ["", "d", "5", "5w", "-5d", "1.5h", "9999999999999999999d", "9223372036854775807d", "5è"]
        {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_request_for_a_database_counts() {
        let at = |words: &str| {
            let times = rotation_requested(&asking(words), "protocollo");
            times.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(at(""), "");
        assert_eq!(at("protocollo@2026-01-02T03:04:05Z"), "2026-01-02T03:04:05Z");
        assert_eq!(at("protocollo@2026-01-02T03:04:05+01:00"), "2026-01-02T02:04:05Z");
        assert_eq!(
            at("*@2027-01-03T00:00:00Z, protocollo@2026-01-02T00:00:00Z"),
            "2027-01-03T00:00:00Z 2026-01-02T00:00:00Z"
        );
        assert_eq!(at("altro@2026-01-02T00:00:00Z"), "");
    }

    #[test]
    fn what_is_not_understood_is_told() {
        assert!(not_understood(&asking("*@2026-01-03T00:00:00Z,protocollo@2026-01-03T00:00:00Z")).is_empty());
        let told = not_understood(&asking("protocollo, altro@2026-01-03T00:00:00Z, protocollo@domani"));
        assert!(
            told.len() == 3 && told[0].contains("DATABASE@TIME") && told[1].contains("`altro`"),
            "{told:?}"
        );
    }
}
