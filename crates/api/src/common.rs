//! Values that several resources share.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// Lower-case name of at most 63 characters that begins with a letter and never has two hyphens in a row.
///
/// The double hyphen is kept free so that two names can be joined into one without ambiguity.
pub const NAME_PATTERN: &str = "^[a-z][a-z0-9]*(-[a-z0-9]+)*$";
/// A fully qualified host name without a wildcard.
pub const HOSTNAME_PATTERN: &str =
    r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)+$";
/// A calendar date, `YYYY-MM-DD`.
pub const DATE_PATTERN: &str = r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$";
/// A time of the day, `HH:MM`.
pub const TIME_PATTERN: &str = "^([01][0-9]|2[0-3]):[0-5][0-9]$";
/// A span of time: a whole number of seconds, minutes, hours or days.
pub const DURATION_PATTERN: &str = "^[0-9]{1,6}[smhd]$";
/// The same, but not nothing.
pub const POSITIVE_DURATION_PATTERN: &str = "^[1-9][0-9]{0,5}[smhd]$";
pub(crate) const QUANTITY_PATTERN: &str = r"^[0-9]+(\.[0-9]+)?(m|k|[MGTPE]|[KMGTPE]i)?$";

/// An amount in the notation of Kubernetes: `500m` (half a vCPU), `16Gi` (bytes, powers of 1024), `8`.
///
/// Written as a string or as a whole number; kept as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Quantity(pub String);

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Quantity {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u64),
            Text(String),
        }
        Ok(match Raw::deserialize(deserializer)? {
            Raw::Number(number) => Self(number.to_string()),
            Raw::Text(text) => Self(text),
        })
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": true,
            "maxLength": 32,
            "pattern": QUANTITY_PATTERN,
        })
    }
}

/// What happens to data when its declaration goes away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// Namespaces, volumes and databases stay, marked as orphaned with the date.
    #[default]
    Retain,
    /// They may be deleted, after a person's confirmation and a grace period.
    Delete,
}

/// Engine of a database server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// PostgreSQL.
    Postgresql,
    /// MariaDB.
    Mariadb,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgresql => "postgresql",
            Self::Mariadb => "mariadb",
        })
    }
}

/// Class of data and services of the Strategia Cloud Italia (2021).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DataClass {
    /// Its compromise does not interrupt State services nor harm wellbeing.
    Ordinario,
    /// Its compromise can harm functions relevant to society, health, safety or the economy.
    Critico,
    /// Its compromise can affect national security.
    Strategico,
}

/// The classification of a service or of data, as the administration decided it. Never guessed: absent means
/// not classified, and what is not classified may not migrate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Classification {
    /// Class by the Strategia Cloud Italia: ordinario, critico or strategico.
    pub class: DataClass,
    /// The act by which the administration decided it, for example "det. 12/2026".
    #[schemars(length(min = 1, max = 128))]
    pub act: String,
    /// Date of the act, YYYY-MM-DD.
    #[schemars(length(max = 10), regex(pattern = DATE_PATTERN))]
    pub date: String,
}

/// True when a `bool` is false; for `skip_serializing_if`.
pub(crate) fn is_false(value: &bool) -> bool {
    !value
}
