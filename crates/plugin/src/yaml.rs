//! Manifests with the place of every value: YAML as kubectl reads it, or JSON.
//!
//! kubectl splits a file at lines that begin with `---` and reads each part with the rules of YAML 1.1: `no` and `on` are
//! false and true, `027012` is octal, a date is a text. So does this module, so that both find the same values.

use std::collections::HashMap;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span};
use serde_json::{Map, Number, Value, json};

use crate::{
    path::{Path, Segment},
    problem::{Code, Position, Problem},
};

/// Largest file that is read, in bytes. The API server takes less in one request; a file may hold many objects.
pub const LARGEST_FILE: usize = 16 << 20;
/// Most values of one document after its aliases have been filled in.
const MOST_VALUES: usize = 200_000;
/// Deepest nesting of a document.
const DEEPEST: usize = 64;

/// A value with its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it begins.
    pub at: Position,
    /// What it is.
    pub data: Data,
}

/// What a value is.
#[derive(Clone, Debug)]
pub enum Data {
    /// Text, number, truth value or nothing.
    Scalar {
        /// As kubectl reads it.
        value: Value,
        /// As it is written.
        raw: String,
    },
    /// A list.
    List(Vec<Node>),
    /// A map, in the order of the file.
    Map(Vec<Entry>),
}

/// A key of a map with its value.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Key.
    pub key: String,
    /// Where the key stands.
    pub at: Position,
    /// Value.
    pub value: Node,
}

/// One document of a file.
#[derive(Clone, Debug)]
pub struct Document {
    /// File as it was named.
    pub file: String,
    /// Its top.
    pub root: Node,
}

impl Node {
    /// The value of a field of a map.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// A field of a map.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.data {
            Data::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The text of a field of a map.
    pub fn text(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.data {
            Data::Scalar { value, .. } => value.as_str(),
            _ => None,
        }
    }

    /// One step down.
    pub fn step(&self, segment: &Segment) -> Option<&Self> {
        match (segment, &self.data) {
            (Segment::Field(key), _) => self.get(key),
            (Segment::Index(index), Data::List(items)) => items.get(*index),
            _ => None,
        }
    }

    /// The value at the end of a path.
    pub fn at_path(&self, path: &Path) -> Option<&Self> {
        path.0.iter().try_fold(self, |node, segment| node.step(segment))
    }

    /// Where to look for the value of a path; where it is missing, for what it is missing from.
    pub fn locate(&self, path: &Path) -> Position {
        let (mut node, mut at) = (self, self.at);
        for segment in &path.0 {
            let Some(next) = node.step(segment) else { break };
            at = match (segment, &next.data) {
                // A value below its key is told by its key.
                (Segment::Field(key), Data::List(_) | Data::Map(_)) => {
                    node.entry(key).map_or(next.at, |entry| entry.at)
                }
                _ => next.at,
            };
            node = next;
        }
        at
    }

    /// Without places.
    pub fn to_json(&self) -> Value {
        match &self.data {
            Data::Scalar { value, .. } => value.clone(),
            Data::List(items) => items.iter().map(Self::to_json).collect(),
            Data::Map(entries) => Value::Object(
                entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json())).collect::<Map<_, _>>(),
            ),
        }
    }
}

/// Reads a file: its documents, and what stands in the way of reading others.
pub fn read(file: &str, bytes: &[u8]) -> (Vec<Document>, Vec<Problem>) {
    let problem = |at: Position, message: String, suggestion: Option<&str>| Problem {
        file: file.to_owned(),
        at,
        object: String::new(),
        path: Path::default(),
        code: Code::Syntax,
        message,
        suggestion: suggestion.map(str::to_owned),
        covers: Vec::new(),
    };
    let top = Position { line: 1, column: 1 };
    if bytes.len() > LARGEST_FILE {
        let message = format!("the file has {} bytes; at most {LARGEST_FILE} are read", bytes.len());
        return (Vec::new(), vec![problem(top, message, Some("split it into several files"))]);
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]).into_owned();
            let message = "the file is not written in UTF-8: here is a byte that is no letter".to_owned();
            let hint = "save it as UTF-8 without changing anything else (iconv -f WINDOWS-1252 -t UTF-8)";
            return (Vec::new(), vec![problem(end_of(&before), message, Some(hint))]);
        }
    };
    let (mut documents, mut problems) = (Vec::new(), Vec::new());
    for (first_line, part) in parts(text) {
        let mut reader = Reader { file, first_line, values: 0, problems: Vec::new() };
        match reader.document(part) {
            Ok(Some(root)) => documents.push(Document { file: file.to_owned(), root }),
            Ok(None) => {}
            Err(stop) => {
                let hint = stop.suggestion.as_deref();
                problems.push(problem(stop.at, stop.message, hint));
            }
        }
        problems.append(&mut reader.problems);
    }
    if documents.is_empty() && problems.is_empty() {
        problems.push(problem(
            top,
            "the file holds no manifest: it is empty or has comments only".into(),
            None,
        ));
    }
    (documents, problems)
}

/// Where a text ends.
fn end_of(text: &str) -> Position {
    let line = text.matches('\n').count() + 1;
    let column = text.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Position { line, column }
}

/// The parts between lines that begin with `---`, each with the number of its first line.
fn parts(text: &str) -> Vec<(usize, &str)> {
    let (mut parts, mut begin, mut first_line, mut offset) = (Vec::new(), 0, 1, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if line.starts_with("---") && offset > begin {
            parts.push((first_line, &text[begin..offset]));
            (begin, first_line) = (offset, number + 1);
        }
        offset += line.len();
    }
    parts.push((first_line, &text[begin..]));
    parts
}

/// Why a document cannot be read.
struct Stop {
    at: Position,
    message: String,
    suggestion: Option<String>,
}

struct Reader<'a> {
    file: &'a str,
    first_line: usize,
    values: usize,
    problems: Vec<Problem>,
}

/// What is being put together.
enum Open {
    List { at: Position, anchor: usize, items: Vec<Node> },
    Map { at: Position, anchor: usize, entries: Vec<Entry>, key: Option<(String, Position)> },
}

impl Reader<'_> {
    fn position(&self, line: usize, column: usize) -> Position {
        Position { line: line + self.first_line - 1, column: column + 1 }
    }

    fn start(&self, span: &Span) -> Position {
        self.position(span.start.line(), span.start.col())
    }

    fn document(&mut self, text: &str) -> Result<Option<Node>, Stop> {
        let options = granit_parser::options! { emit_comments: false };
        let mut open: Vec<Open> = Vec::new();
        let mut anchors: HashMap<usize, Node> = HashMap::new();
        let mut root = None;
        for next in Parser::new_from_str_with_options(text, options) {
            let (event, span) = next.map_err(|error| self.syntax(text, &error))?;
            let at = self.start(&span);
            let (node, anchor) = match event {
                Event::Scalar(raw, style, anchor, tag) => {
                    let plain = matches!(style, ScalarStyle::Plain) && tag.is_none();
                    let value = if plain { resolve(&raw) } else { json!(raw) };
                    (Node { at, data: Data::Scalar { value, raw: raw.into_owned() } }, anchor)
                }
                Event::SequenceStart(_, anchor, _) => {
                    open.push(Open::List { at, anchor, items: Vec::new() });
                    self.check_depth(open.len(), at)?;
                    continue;
                }
                Event::MappingStart(_, anchor, _) => {
                    open.push(Open::Map { at, anchor, entries: Vec::new(), key: None });
                    self.check_depth(open.len(), at)?;
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                    Some(Open::List { at, anchor, items }) => (Node { at, data: Data::List(items) }, anchor),
                    Some(Open::Map { at, anchor, entries, .. }) => {
                        (Node { at, data: Data::Map(merged(entries)) }, anchor)
                    }
                    None => continue,
                },
                Event::Alias(id) => {
                    let mut node = anchors.get(&id).cloned().ok_or_else(|| Stop {
                        at,
                        message: "an alias stands inside what it stands for".into(),
                        suggestion: Some("write the value out".into()),
                    })?;
                    self.values += size(&node);
                    node.at = at;
                    (node, 0)
                }
                _ => continue,
            };
            self.values += 1;
            if self.values > MOST_VALUES {
                return Err(Stop {
                    at,
                    message: format!(
                        "the document has more than {MOST_VALUES} values with its aliases filled in"
                    ),
                    suggestion: Some("write the values out instead of repeating anchors".into()),
                });
            }
            if anchor != 0 {
                anchors.insert(anchor, node.clone());
            }
            match open.last_mut() {
                Some(Open::List { items, .. }) => items.push(node),
                Some(Open::Map { entries, key, .. }) => match key.take() {
                    None => *key = Some((self.key(&node)?, node.at)),
                    Some((key, at)) => match entries.iter().find(|entry| entry.key == key) {
                        Some(first) => {
                            let line = first.at.line;
                            self.problems.push(Problem {
                                file: self.file.to_owned(),
                                at,
                                object: String::new(),
                                path: here(&open, &key),
                                code: Code::DuplicateKey,
                                message: format!(
                                    "the key `{key}` stands here a second time; first in line {line}"
                                ),
                                suggestion: Some("keep one of the two".into()),
                                covers: Vec::new(),
                            });
                        }
                        None => entries.push(Entry { key, at, value: node }),
                    },
                },
                None => root = Some(node),
            }
        }
        Ok(root.filter(|node| !matches!(&node.data, Data::Scalar { value: Value::Null, .. })))
    }

    fn check_depth(&self, depth: usize, at: Position) -> Result<(), Stop> {
        if depth <= DEEPEST {
            return Ok(());
        }
        Err(Stop { at, message: format!("values are nested more than {DEEPEST} deep"), suggestion: None })
    }

    fn key(&self, node: &Node) -> Result<String, Stop> {
        match &node.data {
            Data::Scalar { raw, .. } => Ok(raw.clone()),
            _ => Err(Stop {
                at: node.at,
                message: "a key is a list or a map".into(),
                suggestion: Some("a text in braces, such as {{ value }}, has to be put in quotes".into()),
            }),
        }
    }

    /// A syntax error in words.
    fn syntax(&self, text: &str, error: &ScanError) -> Stop {
        let marker = error.marker();
        let at = self.position(marker.line().max(1), marker.col());
        let lines: Vec<&str> = text.lines().collect();
        let tab = |line: usize| {
            let line: &str = lines.get(line.wrapping_sub(1)).copied().unwrap_or_default();
            let margin: String = line.chars().take_while(|c| c.is_whitespace()).collect();
            margin.find('\t')
        };
        // The parser stops where it no longer can go on, which may be the line after.
        let near = [marker.line(), marker.line().saturating_sub(1), marker.line() + 1];
        if let Some((line, column)) = near.into_iter().find_map(|line| Some((line, tab(line)?))) {
            return Stop {
                at: self.position(line, column),
                message: "the line is indented with a tab, which YAML does not allow".into(),
                suggestion: Some("indent with spaces".into()),
            };
        }
        if let Some((bracket, line, column)) = unclosed(&lines, marker.line()) {
            let (what, missing) = if bracket == '[' { ("list", ']') } else { ("map", '}') };
            return Stop {
                at: self.position(line, column),
                message: format!("a {what} that begins with {bracket} is not closed before the next field"),
                suggestion: Some(format!("add the missing {missing}")),
            };
        }
        let (message, suggestion) = match error.kind() {
            ErrorKind::UnknownAnchor => {
                ("an alias `*…` names an anchor that is not there", "put a text that begins with * in quotes")
            }
            ErrorKind::RecursionLimitExceeded => {
                ("values are nested too deep", "no manifest of Con.Me needs that")
            }
            ErrorKind::ExpectedFlowMappingSeparator | ErrorKind::ExpectedFlowSequenceSeparator => (
                "a comma or a closing bracket is missing before this place",
                "in {…} and […] the elements are separated by commas",
            ),
            ErrorKind::MismatchedFlowCollectionEnd { .. } | ErrorKind::MisplacedFlowCollectionEnd => (
                "this bracket closes nothing that was opened",
                "look for the one that is missing or too many",
            ),
            ErrorKind::UnexpectedCharacter { .. } => {
                ("this character cannot begin a value", "put the text in quotes")
            }
            ErrorKind::ExpectedBlockMappingKey
            | ErrorKind::ExpectedBlockSequenceEntry
            | ErrorKind::InvalidIndentation
            | ErrorKind::SimpleKeyExpected
            | ErrorKind::InvalidSimpleKey
            | ErrorKind::UnexpectedEofBlockMapping
            | ErrorKind::UnexpectedEofBlockSequence
            | ErrorKind::ExpectedDocumentStart => (
                "the line does not fit to those above it",
                "fields of one map begin in the same column and each has a colon and a space; a text with `: ` in it is put in quotes",
            ),
            _ => ("this is no YAML", "look at this line and the one above it"),
        };
        let message = match error.kind() {
            ErrorKind::UnexpectedCharacter { character } => format!("{message}: `{character}`"),
            _ => {
                // The parser counts from the beginning of the document; the place in the file is told beside.
                let words = error.to_string();
                format!("{message} ({})", words.split(" at char ").next().unwrap_or_default())
            }
        };
        Stop { at, message, suggestion: Some(suggestion.into()) }
    }
}

/// A bracket that is still open in the lines above the one with the error: its line and column.
fn unclosed(lines: &[&str], until: usize) -> Option<(char, usize, usize)> {
    let mut open: Vec<(char, usize, usize)> = Vec::new();
    let mut quote = None;
    for (number, line) in lines.iter().enumerate().take(until.max(1)) {
        let mut before = ' ';
        for (column, character) in line.chars().enumerate() {
            match (quote, character) {
                (Some(mark), character) if mark == character => quote = None,
                (Some(_), _) => {}
                (None, '#') if before.is_whitespace() => break,
                (None, '"' | '\'') if !before.is_alphanumeric() => quote = Some(character),
                (None, '[' | '{') if before.is_whitespace() || "[{,(".contains(before) => {
                    open.push((character, number + 1, column));
                }
                (None, ']' | '}') => {
                    open.pop();
                }
                _ => {}
            }
            before = character;
        }
        // A list or a map in brackets over several lines is rare; a text over several lines is not followed.
        if open.is_empty() {
            quote = None;
        }
    }
    open.first().copied().filter(|(_, line, _)| *line < until || lines.len() <= until)
}

/// The path of a key in what is being put together.
fn here(open: &[Open], key: &str) -> Path {
    let mut path = Path::default();
    let above = open.len().saturating_sub(1);
    for open in &open[..above] {
        path = match open {
            Open::List { items, .. } => path.index(items.len()),
            Open::Map { key: Some((key, _)), .. } => path.field(key),
            Open::Map { .. } => path,
        };
    }
    path.field(key)
}

/// Number of values of a node.
fn size(node: &Node) -> usize {
    match &node.data {
        Data::Scalar { .. } => 1,
        Data::List(items) => 1 + items.iter().map(size).sum::<usize>(),
        Data::Map(entries) => 1 + entries.iter().map(|entry| size(&entry.value)).sum::<usize>(),
    }
}

/// Fills in the merge key `<<`: what it brings stands back behind what is written.
fn merged(entries: Vec<Entry>) -> Vec<Entry> {
    let (merges, mut own): (Vec<Entry>, Vec<Entry>) =
        entries.into_iter().partition(|entry| entry.key == "<<");
    for merge in merges {
        let maps = match merge.value.data {
            Data::List(items) => items,
            _ => vec![merge.value],
        };
        for entry in maps.into_iter().flat_map(|map| match map.data {
            Data::Map(entries) => entries,
            _ => Vec::new(),
        }) {
            if !own.iter().any(|known| known.key == entry.key) {
                own.push(entry);
            }
        }
    }
    own
}

/// What an unquoted word means to kubectl.
fn resolve(raw: &str) -> Value {
    match raw {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    let begins_like_a_number = raw.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.'));
    if !begins_like_a_number {
        return json!(raw);
    }
    if let Some(number) = integer(&raw.replace('_', "")) {
        return Value::Number(number);
    }
    let looks_decimal = raw.chars().all(|c| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E'))
        && raw.contains(|c: char| c.is_ascii_digit());
    match raw.parse::<f64>().ok().filter(|_| looks_decimal).and_then(Number::from_f64) {
        Some(number) => Value::Number(number),
        None => json!(raw),
    }
}

/// Whole numbers in the notations of YAML 1.1: decimal, 0x…, 0b…, 0o… and octal with a leading zero.
fn integer(text: &str) -> Option<Number> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let lower = digits.to_lowercase();
    let (radix, digits) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        _ if lower.len() > 1 && lower.starts_with('0') => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    let number = u64::from_str_radix(digits, radix).ok()?;
    if negative {
        i64::try_from(number).ok().map(|number| Number::from(-number))
    } else {
        Some(number.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Value {
        let (documents, problems) = read("f", text.as_bytes());
        assert!(problems.is_empty(), "{problems:?}");
        documents[0].root.to_json()
    }

    fn first_problem(text: &str) -> (usize, usize, String) {
        let (_, problems) = read("f", text.as_bytes());
        let problem = problems.first().expect("a problem");
        (problem.at.line, problem.at.column, problem.message.clone())
    }

    #[test]
    fn words_mean_what_they_mean_to_kubectl() {
        let values = "[027012, 0x1F, 12, -3, 1.5, 14.04, no, on, 2026-03-02, 19:00, ~, 1_000, 090001, 1e3, c_d325, 7Gi]";
        assert_eq!(
            one(values),
            json!([
                11786,
                31,
                12,
                -3,
                1.5,
                14.04,
                false,
                true,
                "2026-03-02",
                "19:00",
                null,
                1000,
                90001.0,
                1000.0,
                "c_d325",
                "7Gi"
            ])
        );
        assert_eq!(one("['027012', \"no\", !!str 12]"), json!(["027012", "no", "12"]));
    }

    #[test]
    fn every_value_has_its_place() {
        let (documents, _) = read("f", b"# x\na:\n  b:\n    - c: 1\n---\nd: {e: 2}\n");
        let place = |document: usize, path: &str| {
            let root = &documents[document].root;
            let at = root.locate(&Path::parse(path, root));
            (at.line, at.column)
        };
        assert_eq!(place(0, "a.b[0].c"), (4, 10));
        assert_eq!(place(0, "a.b[0].x"), (4, 7), "what is missing is looked for where it belongs");
        assert_eq!(place(0, "a.b"), (3, 3));
        assert_eq!(place(1, "d.e"), (6, 8));
    }

    #[test]
    fn slips_of_yaml_are_told_with_their_place() {
        assert_eq!(
            first_problem("a:\n\tb: 1\n"),
            (2, 1, "the line is indented with a tab, which YAML does not allow".into())
        );
        let (line, column, message) = first_problem("a:\n  b: 1\n  b: 2\n");
        assert_eq!((line, column), (3, 3), "{message}");
        assert!(message.contains("first in line 2"));
        assert_eq!(
            first_problem("a: [1, 2\n").2.split(" (").next(),
            Some("a list that begins with [ is not closed before the next field")
        );
        assert_eq!(first_problem("a: 1\n   b: 2\n").0, 2);
        let (line, _, message) = first_problem("a: 1\n---\na: 1\n   b: 2\n");
        assert_eq!(line, 4);
        assert!(!message.contains("line 3"), "{message}");
        assert_eq!(first_problem("a: @x\n").2, "this character cannot begin a value: `@`");
        assert_eq!(first_problem("").2, "the file holds no manifest: it is empty or has comments only");
        assert_eq!(
            first_problem("# nothing\n---\n").2,
            "the file holds no manifest: it is empty or has comments only"
        );
        assert_eq!(first_problem("a: *b\n").0, 1);
        let (_, problems) = read("f", b"a: 1\nb: caff\xe8\n");
        assert_eq!((problems[0].at.line, problems[0].at.column), (2, 8));
    }

    #[test]
    fn the_path_of_a_key_that_stands_twice_is_told() {
        let (_, problems) = read("f", b"a:\n  - x: 1\n  - y: 1\n    y: 2\n");
        assert_eq!(problems[0].path.to_string(), "a[1].y");
    }

    #[test]
    fn a_broken_document_does_not_hide_the_others() {
        let (documents, problems) = read("f", b"a: 1\n---\nb: [\n---\nc: 3\n");
        assert_eq!(documents.len(), 2);
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].at.line, 3);
        assert_eq!(documents[1].root.locate(&Path::default().field("c")).line, 5);
    }

    #[test]
    fn nothing_grows_beyond_its_bounds() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let alias = format!("*a{}", level - 1);
            let items = vec![alias; 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{items}]\n"));
        }
        assert!(first_problem(&bomb).2.contains("with its aliases filled in"));
        assert!(first_problem(&"[".repeat(10_000)).2.len() > 1);
        assert!(first_problem(&"- ".repeat(5_000)).2.len() > 1);
        assert!(first_problem("a: &x [*x]\n").2.contains("inside what it stands for"));
        let (_, problems) = read("f", &vec![b' '; LARGEST_FILE + 1]);
        assert!(problems[0].message.contains("bytes"));
    }

    #[test]
    fn merge_keys_are_filled_in() {
        assert_eq!(one("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\n")["y"], json!({"a": 1, "b": 3}));
    }
}
