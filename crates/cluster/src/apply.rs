//! Bodies of server-side apply.

use std::io::{self, Write};

use kube::api::Patch;
use serde::Serialize;
use serde_json::{Serializer, ser::Formatter, value::RawValue};

/// A server-side apply of `body`, whatever its texts contain.
///
/// The API server reads the body of an apply as YAML, which JSON is only almost: YAML refuses some characters that may
/// stand in a JSON text as they are (a control character in one field of one Comune would fail every write that
/// repeats it), and takes others for line breaks, which it folds. Written as escapes both languages read them alike.
///
/// # Errors
/// [`kube::Error::SerdeError`] when `body` is no JSON, such as a map whose keys are no texts.
pub fn apply<T: Serialize + ?Sized>(body: &T) -> kube::Result<Patch<Box<RawValue>>> {
    let mut text = Vec::new();
    body.serialize(&mut Serializer::with_formatter(&mut text, Escaping)).map_err(kube::Error::SerdeError)?;
    // What serde_json wrote is UTF-8 and one value; read as such it is not looked at further.
    let text =
        String::from_utf8(text).map_err(|error| kube::Error::SerdeError(serde::ser::Error::custom(error)))?;
    RawValue::from_string(text).map(Patch::Apply).map_err(kube::Error::SerdeError)
}

/// JSON whose texts are texts of YAML, too.
struct Escaping;

impl Formatter for Escaping {
    fn write_string_fragment<W: Write + ?Sized>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, character)) = rest.char_indices().find(|(_, character)| !is_plain(*character)) {
            writer.write_all(&rest.as_bytes()[..at])?;
            // None of them is beyond 16 bits.
            write!(writer, "\\u{:04x}", u32::from(character))?;
            rest = &rest[at + character.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Whether YAML reads a character within double quotes as itself. What is below the space, quotation marks and
/// backslashes never get here, JSON has escapes of its own for them. Source: YAML 1.2.2, 5.1 (printable characters, byte
/// order mark) and, for the line breaks beyond ASCII, which the parser of the API server still knows, YAML 1.1, 5.4.
fn is_plain(character: char) -> bool {
    !matches!(character, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn text(body: &Value) -> String {
        let Patch::Apply(text) = apply(body).unwrap() else { panic!("another kind of patch") };
        serde_json::to_string(&text).unwrap()
    }

    #[test]
    fn what_yaml_refuses_or_folds_is_escaped_and_the_rest_stays_as_it_is() {
        assert_eq!(text(&json!({"a\u{7f}": "\u{85}x\u{9f}"})), r#"{"a\u007f":"\u0085x\u009f"}"#);
        assert_eq!(
            text(&json!(["\u{2028}\u{2029}", "\u{feff}\u{fffe}\u{ffff}"])),
            r#"["\u2028\u2029","\ufeff\ufffe\uffff"]"#
        );
        let plain = json!({"nome": "San Donà di Piave \u{a0} — 東 🦆", "riga": "a\n\t\"\\", "n": [1, -2, 0.5, null, true]});
        assert_eq!(text(&plain), plain.to_string());
    }

    #[test]
    fn every_character_arrives_and_none_that_is_sent_raw_is_other_than_printable_to_yaml() {
        for character in '\0'..=char::MAX {
            let body = Value::String(character.to_string());
            let sent = text(&body);
            assert_eq!(serde_json::from_str::<Value>(&sent).unwrap(), body);
            // The printable characters of YAML 1.2.2, written down once more, without the line breaks of 1.1.
            let is_printable = matches!(u32::from(character), 0x20..=0x7e | 0xa0..=0xd7ff | 0xe000..=0xfffd | 0x1_0000..)
                && !matches!(character, '\u{2028}' | '\u{2029}' | '\u{feff}');
            assert!(is_printable || sent.is_ascii(), "{sent}");
            assert!(
                !is_printable || matches!(character, '"' | '\\') || sent == format!("\"{character}\""),
                "{sent}"
            );
        }
    }
}
