//! Exact amounts of resources, in the notation of Kubernetes.
//!
//! Written back in the canonical form of the API server, so that what was asked for and what is stored can be
//! compared as text (<https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>).

use std::{fmt, iter::Sum, ops};

use conme_api::Quantity;

/// An amount in thousandths of its unit: millicores, or thousandths of a byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Amount {
    milli: i128,
}

/// How an amount is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// Powers of 1000: vCPU and counts.
    Decimal,
    /// Powers of 1024: bytes.
    Binary,
}

/// Text that is not an amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an amount such as 8, 500m, 512Mi, 16Gi")]
pub struct NotAnAmount(pub String);

/// The most that the API server can represent, 2^63 − 1 units: sums and multiples of it stay within an `i128`.
const MOST_MILLI: i128 = i64::MAX as i128 * 1000;

const BINARY: [(&str, u32); 6] = [("Ei", 60), ("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
const DECIMAL: [(&str, i128); 7] = [
    ("E", 10_i128.pow(18)),
    ("P", 10_i128.pow(15)),
    ("T", 10_i128.pow(12)),
    ("G", 10_i128.pow(9)),
    ("M", 10_i128.pow(6)),
    ("k", 1000),
    ("", 1),
];

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self { milli: 0 };

    /// A whole number of units: vCPU, bytes, or objects.
    pub fn units(units: u64) -> Self {
        Self { milli: i128::from(units) * 1000 }
    }

    /// Reads an amount.
    ///
    /// # Errors
    /// When the text is not an amount.
    pub fn parse(text: &str) -> Result<Self, NotAnAmount> {
        let error = || NotAnAmount(text.to_owned());
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        let factor_milli = match suffix {
            "m" => 1,
            _ => match BINARY.iter().find(|(name, _)| *name == suffix) {
                Some((_, bits)) => 1000 << bits,
                None => 1000 * DECIMAL.iter().find(|(name, _)| *name == suffix).ok_or_else(error)?.1,
            },
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || whole.len() > 22 || fraction.len() > 9 {
            return Err(error());
        }
        let whole: i128 = whole.parse().map_err(|_| error())?;
        let mut milli = whole.checked_mul(factor_milli).ok_or_else(error)?;
        if !fraction.is_empty() {
            let numerator: i128 = fraction.parse().map_err(|_| error())?;
            // Kubernetes rounds up to the next thousandth.
            let denominator = 10_i128.pow(fraction.len() as u32);
            milli += (numerator * factor_milli + denominator - 1) / denominator;
        }
        if milli > MOST_MILLI {
            return Err(error());
        }
        Ok(Self { milli })
    }

    /// Canonical text.
    pub fn text(self, notation: Notation) -> String {
        if self.milli % 1000 != 0 {
            return format!("{}m", self.milli);
        }
        let units = self.milli / 1000;
        if units == 0 {
            return "0".into();
        }
        match notation {
            Notation::Binary => BINARY
                .iter()
                .find(|(_, bits)| units % (1 << bits) == 0)
                .map_or_else(|| units.to_string(), |(suffix, bits)| format!("{}{suffix}", units >> bits)),
            Notation::Decimal => DECIMAL
                .iter()
                .find(|(_, factor)| units % factor == 0)
                .map_or_else(|| units.to_string(), |(suffix, factor)| format!("{}{suffix}", units / factor)),
        }
    }

    /// Short text for people: bytes rounded to a whole binary unit, anything else exact.
    pub fn short(self, notation: Notation) -> String {
        let units = self.milli / 1000;
        match notation {
            Notation::Binary => BINARY
                .iter()
                .find(|(_, bits)| units >= 1 << bits)
                .map_or_else(|| units.to_string(), |(suffix, bits)| format!("{}{suffix}", units >> bits)),
            Notation::Decimal if self.milli % 1000 == 0 => units.to_string(),
            Notation::Decimal => format!("{}m", self.milli),
        }
    }

    /// The share of `percent` hundredths, rounded down to a whole unit of `step` thousandths.
    pub fn percent(self, percent: u32, step: u64) -> Self {
        let step = i128::from(step).max(1);
        Self { milli: self.milli * i128::from(percent) / 100 / step * step }
    }

    /// One of `parts` equal parts, rounded down to a whole unit of `step` thousandths.
    pub fn part(self, parts: u32, step: u64) -> Self {
        let step = i128::from(step).max(1);
        Self { milli: self.milli / i128::from(parts.max(1)) / step * step }
    }

    /// Whole units, such as bytes.
    pub fn whole(self) -> u64 {
        u64::try_from(self.milli / 1000).unwrap_or(u64::MAX)
    }

    /// This many times as much.
    pub fn times(self, factor: u32) -> Self {
        Self { milli: self.milli * i128::from(factor) }
    }

    /// The difference, or nothing when `other` is more.
    pub fn saturating_sub(self, other: Self) -> Self {
        Self { milli: (self.milli - other.milli).max(0) }
    }
}

impl ops::Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { milli: self.milli + other.milli }
    }
}

impl ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.milli += other.milli;
    }
}

impl Sum for Amount {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, ops::Add::add)
    }
}

impl TryFrom<&Quantity> for Amount {
    type Error = NotAnAmount;

    fn try_from(quantity: &Quantity) -> Result<Self, NotAnAmount> {
        Self::parse(&quantity.0)
    }
}

impl fmt::Display for Notation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decimal => "decimal",
            Self::Binary => "binary",
        })
    }
}

/// How the amounts of a resource are written, by the name that quotas use.
pub fn notation(resource: &str) -> Notation {
    if resource.contains("memory") || resource.contains("storage") {
        Notation::Binary
    } else {
        Notation::Decimal
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str, notation: Notation) -> String {
        Amount::parse(text).unwrap().text(notation)
    }

    #[test]
    fn canonical_form_is_that_of_the_api_server() {
        for (text, notation, expected) in [
            ("1000m", Notation::Decimal, "1"),
            ("0.5", Notation::Decimal, "500m"),
            ("1500m", Notation::Decimal, "1500m"),
            ("3000", Notation::Decimal, "3k"),
            ("1024Mi", Notation::Binary, "1Gi"),
            ("1.5Gi", Notation::Binary, "1536Mi"),
            ("0", Notation::Binary, "0"),
            ("1000", Notation::Binary, "1000"),
            ("2G", Notation::Decimal, "2G"),
            ("2G", Notation::Binary, "1953125Ki"),
            ("1125899906842624", Notation::Binary, "1Pi"),
            ("0.0001", Notation::Decimal, "1m"),
        ] {
            assert_eq!(canonical(text, notation), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in [
            "",
            "Gi",
            "-1",
            "1.2.3",
            "1x",
            "9223372036854775808",
            "16Ei",
            "9999999999999999999999999",
            "1Mi ",
            ".",
        ] {
            assert!(Amount::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn canonical_text_reads_back_as_the_same_amount(digits in 0_i128..=MOST_MILLI, zeros in 0_u32..22, binary: bool) {
            // Round amounts, too: almost no random number is one.
            let amount = Amount { milli: digits / 10_i128.pow(zeros) * if binary { 1024 } else { 1000 } % MOST_MILLI };
            let notation = if binary { Notation::Binary } else { Notation::Decimal };
            let text = amount.text(notation);
            prop_assert_eq!(Amount::parse(&text).unwrap(), amount);
        }

        #[test]
        fn shares_never_exceed_the_whole(milli in 0_i128..1 << 60, parts in 1_u32..9, step in 1_u64..2000) {
            let whole = Amount { milli };
            let sum: Amount = (0..parts).map(|_| whole.part(parts, step)).sum();
            prop_assert!(sum <= whole);
            prop_assert!(whole.percent(80, step) + whole.percent(20, step) <= whole);
        }
    }
}
