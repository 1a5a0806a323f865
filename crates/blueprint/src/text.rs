//! `$(name)` in the texts of a template.

use std::collections::{BTreeMap, BTreeSet};

use conme_api::TemplateVersion;

/// Fills in every `$(name)` that is known. `$$(name)` stands for a literal `$(name)`.
pub fn fill(text: &str, values: &BTreeMap<String, String>) -> String {
    let mut filled = String::with_capacity(text.len());
    for piece in pieces(text) {
        match piece {
            Piece::Text(text) => filled.push_str(text),
            Piece::Name(name) => filled.push_str(values.get(name).map_or("", String::as_str)),
        }
    }
    filled
}

/// Names in the texts of a template's version that nothing defines.
pub fn unknown_names(version: &TemplateVersion, values: &BTreeMap<String, String>) -> BTreeSet<String> {
    let texts = version
        .args
        .iter()
        .chain(version.env.iter().filter_map(|variable| variable.value.as_ref()))
        .chain(version.files.iter().map(|file| &file.content));
    texts
        .flat_map(|text| pieces(text))
        .filter_map(|piece| match piece {
            Piece::Name(name) if !values.contains_key(name) => Some(name.to_owned()),
            _ => None,
        })
        .collect()
}

enum Piece<'a> {
    Text(&'a str),
    Name(&'a str),
}

fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("$(") {
        let Some(length) = rest[start..].find(')') else { break };
        let (before, name) = (&rest[..start], &rest[start + 2..start + length]);
        match before.strip_suffix('$') {
            Some(before) => {
                pieces.push(Piece::Text(before));
                pieces.push(Piece::Text(&rest[start..=start + length]));
            }
            None => {
                pieces.push(Piece::Text(before));
                pieces.push(Piece::Name(name));
            }
        }
        rest = &rest[start + length + 1..];
    }
    pieces.push(Piece::Text(rest));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_in_and_doubled_dollars_are_kept() {
        let values =
            BTreeMap::from([("a".to_owned(), "1".to_owned()), ("comune.name".to_owned(), "dolo".to_owned())]);
        assert_eq!(fill("x=$(a) y=$(comune.name)!", &values), "x=1 y=dolo!");
        assert_eq!(fill("$$(a) $(a", &values), "$(a) $(a");
        assert_eq!(fill("", &values), "");
    }
}
