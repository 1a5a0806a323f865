//! Did you mean …?

/// The known word that is most like a mistyped one, if any is like it at all.
pub fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace(['-', '_', ' '], "");
    let wanted = plain(word);
    let limit = (wanted.chars().count() / 3).max(1);
    known
        .into_iter()
        .filter(|candidate| *candidate != word)
        .map(|candidate| (strsim::damerau_levenshtein(&wanted, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.chars().count())
        .min_by_key(|(distance, candidate)| (*distance, candidate.len().abs_diff(word.len())))
        .map(|(_, candidate)| candidate)
}

/// `did you mean …?`, or what is known, when that is little enough to be read.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> Option<String> {
    if let Some(found) = closest(word, known.clone()) {
        return Some(format!("did you mean `{found}`?"));
    }
    let known: Vec<&str> = known.into_iter().collect();
    (!known.is_empty() && known.len() <= 24).then(|| format!("there are: {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_told_from_another_word() {
        let known = ["environments", "administrators", "databases", "services"];
        assert_eq!(closest("enviroments", known), Some("environments"));
        assert_eq!(closest("Databases", known), Some("databases"));
        assert_eq!(closest("servics", known), Some("services"));
        assert_eq!(closest("replicas", known), None);
        assert_eq!(closest("x", ["y", "z"]), None, "a single letter is like every other");
    }
}
