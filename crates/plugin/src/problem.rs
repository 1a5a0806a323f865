//! What is wrong, where, and what to do.

use serde::Serialize;

use crate::path::Path;

/// What sort of rule is broken; stable, for pipelines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The file cannot be read as text or as YAML.
    Syntax,
    /// A key stands twice in one map.
    DuplicateKey,
    /// A field that does not exist.
    UnknownField,
    /// A field that has to be there.
    MissingField,
    /// A number where a text belongs, and the like.
    WrongType,
    /// A value that is not among those allowed.
    NotAllowed,
    /// Too small, too large, too long, too many.
    OutOfRange,
    /// Two elements of a list with one name.
    DuplicateElement,
    /// A rule of the definition.
    Rule,
    /// Something that is named and does not exist.
    NotFound,
    /// Two that want what only one can have.
    Conflict,
    /// The data centre has no room.
    Capacity,
    /// What the API server alone knows.
    Server,
}

impl Code {
    /// Every code with what it means, for formats that list their rules.
    pub const ALL: [(Self, &'static str); 13] = [
        (Self::Syntax, "The file can be read"),
        (Self::DuplicateKey, "A key stands once in a map"),
        (Self::UnknownField, "Every field exists in the definition"),
        (Self::MissingField, "Required fields are there"),
        (Self::WrongType, "Values are of the type of their field"),
        (Self::NotAllowed, "Values are among those allowed"),
        (Self::OutOfRange, "Values, texts and lists keep their bounds"),
        (Self::DuplicateElement, "Elements of a list have names of their own"),
        (Self::Rule, "The rules of the definition hold"),
        (Self::NotFound, "What is named exists"),
        (Self::Conflict, "No two Comuni ask for what only one can have"),
        (Self::Capacity, "The data centre keeps its reserve"),
        (Self::Server, "The API server accepts the manifest"),
    ];

    /// The code as it is written in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::DuplicateKey => "duplicate-key",
            Self::UnknownField => "unknown-field",
            Self::MissingField => "missing-field",
            Self::WrongType => "wrong-type",
            Self::NotAllowed => "not-allowed",
            Self::OutOfRange => "out-of-range",
            Self::DuplicateElement => "duplicate-element",
            Self::Rule => "rule",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::Capacity => "capacity",
            Self::Server => "server",
        }
    }
}

/// Line and column, both from 1; columns count characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

/// Something that a person has to put right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// File as it was named; `-` is standard input.
    pub file: String,
    /// Where in the file.
    #[serde(flatten)]
    pub at: Position,
    /// Kind and name of the object; empty where the file cannot be read so far.
    pub object: String,
    /// Field.
    #[serde(serialize_with = "as_text")]
    pub path: Path,
    /// Sort of rule.
    pub code: Code,
    /// In words.
    pub message: String,
    /// What to write instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
    /// Fields that are in order as soon as this one is: they are not told besides.
    #[serde(skip)]
    pub covers: Vec<Path>,
}

fn as_text<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(path)
}

/// Something worth knowing that is not wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    /// File, where it is about one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// In words.
    pub message: String,
}
