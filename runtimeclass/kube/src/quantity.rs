//! Kubernetes quantities: `100m`, `64Mi`, `1e3`, `0.5`.
//!
//! The grammar is apimachinery's `resource.Quantity`: a signed decimal number and one suffix, either binary
//! (`Ki` to `Ei`), decimal (`n`, `u`, `m`, none, `k` to `E`) or a decimal exponent (`e3`, `E-3`). Anything finer
//! than a nano-unit is rounded up, as there.

use std::fmt;

const NANO: i128 = 1_000_000_000;

/// An amount, kept in nano-units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(i128);

/// Why a text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// There is no number before the suffix.
    #[error("{0:?} is not a quantity: it must start with a number, like 100m or 64Mi")]
    Number(String),
    /// Kubernetes has no such suffix.
    #[error(
        "{text:?} is not a quantity: the suffix {suffix:?} is none of n u m k M G T P E Ki Mi Gi Ti Pi Ei or an exponent like e3"
    )]
    Suffix {
        /// The whole text.
        text: String,
        /// What follows the number.
        suffix: String,
    },
    /// The amount does not fit 128 bits of nano-units.
    #[error("{0:?} is too large a quantity")]
    Range(String),
    /// Resources are never negative.
    #[error("{0:?} must not be negative")]
    Negative(String),
}

impl Quantity {
    /// Parses an amount of a resource.
    ///
    /// # Errors
    ///
    /// [`QuantityError`] for what is no quantity, is negative, or is too large.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let end = text
            .char_indices()
            .find(|&(at, c)| {
                !(c.is_ascii_digit() || c == '.' || (at == 0 && (c == '+' || c == '-')))
            })
            .map_or(text.len(), |(at, _)| at);
        let (number, suffix) = text.split_at(end);
        let (digits, decimals) =
            decimal(number).ok_or_else(|| QuantityError::Number(text.to_owned()))?;
        if number.starts_with('-') && digits != 0 {
            return Err(QuantityError::Negative(text.to_owned()));
        }
        let scale = scale(suffix).ok_or_else(|| QuantityError::Suffix {
            text: text.to_owned(),
            suffix: suffix.to_owned(),
        })?;
        scaled(digits, decimals, scale)
            .map(Self)
            .ok_or_else(|| QuantityError::Range(text.to_owned()))
    }

    /// The amount in whole units, rounded up.
    pub fn units(self) -> i64 {
        clamp(div_up(self.0, NANO))
    }

    /// The amount in thousandths, rounded up.
    pub fn milli(self) -> i64 {
        clamp(div_up(self.0, NANO / 1000))
    }

    /// Whether the amount is zero.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum; saturates.
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 % NANO == 0 {
            write!(f, "{}", self.0 / NANO)
        } else {
            write!(f, "{}m", self.milli())
        }
    }
}

/// The factor of a suffix.
enum Scale {
    Binary(u32),
    Decimal(i32),
}

fn scale(suffix: &str) -> Option<Scale> {
    Some(match suffix {
        "Ki" => Scale::Binary(10),
        "Mi" => Scale::Binary(20),
        "Gi" => Scale::Binary(30),
        "Ti" => Scale::Binary(40),
        "Pi" => Scale::Binary(50),
        "Ei" => Scale::Binary(60),
        "n" => Scale::Decimal(-9),
        "u" => Scale::Decimal(-6),
        "m" => Scale::Decimal(-3),
        "" => Scale::Decimal(0),
        "k" => Scale::Decimal(3),
        "M" => Scale::Decimal(6),
        "G" => Scale::Decimal(9),
        "T" => Scale::Decimal(12),
        "P" => Scale::Decimal(15),
        "E" => Scale::Decimal(18),
        exponent => {
            let exponent = exponent.strip_prefix(['e', 'E'])?;
            Scale::Decimal(exponent.parse().ok()?)
        }
    })
}

/// The digits of a decimal number without its point, and how many of them follow the point.
fn decimal(number: &str) -> Option<(i128, i32)> {
    let number = number.strip_prefix(['+', '-']).unwrap_or(number);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.contains('.') {
        return None;
    }
    Some((digits.parse().ok()?, i32::try_from(fraction.len()).ok()?))
}

fn scaled(digits: i128, decimals: i32, scale: Scale) -> Option<i128> {
    let (digits, power) = match scale {
        Scale::Binary(bits) => (digits.checked_mul(1_i128 << bits)?, 9 - decimals),
        Scale::Decimal(power) => (digits, power.checked_add(9)?.checked_sub(decimals)?),
    };
    let factor = |power: u32| 10_i128.checked_pow(power);
    if power >= 0 {
        digits.checked_mul(factor(power.unsigned_abs())?)
    } else {
        // Beyond 10^38 every amount that fits rounds up to one nano-unit.
        Some(factor(power.unsigned_abs()).map_or(digits.signum(), |by| div_up(digits, by)))
    }
}

fn div_up(value: i128, by: i128) -> i128 {
    value / by + i128::from(value % by > 0)
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kubernetes_reads() {
        for (text, units, milli) in [
            ("0", 0, 0),
            ("1", 1, 1000),
            ("+2", 2, 2000),
            ("100m", 1, 100),
            ("1500m", 2, 1500),
            ("0.5", 1, 500),
            (".5", 1, 500),
            ("5.", 5, 5000),
            ("1.5Gi", 1_610_612_736, 1_610_612_736_000),
            ("64Mi", 67_108_864, 67_108_864_000),
            ("1e3", 1000, 1_000_000),
            ("1E3", 1000, 1_000_000),
            ("1E", 1_000_000_000_000_000_000, i64::MAX),
            ("1e-3", 1, 1),
            ("1e-90", 1, 1),
            ("250u", 1, 1),
            ("10k", 10_000, 10_000_000),
            ("123456789n", 1, 124),
            ("-0", 0, 0),
        ] {
            let quantity = Quantity::parse(text).unwrap();
            assert_eq!((quantity.units(), quantity.milli()), (units, milli), "{text}");
        }
    }

    #[test]
    fn names_what_is_wrong() {
        for (text, message) in [
            ("", "\"\" is not a quantity: it must start with a number, like 100m or 64Mi"),
            ("Mi", "\"Mi\" is not a quantity: it must start with a number, like 100m or 64Mi"),
            (".", "\".\" is not a quantity: it must start with a number, like 100m or 64Mi"),
            (
                "1.2.3",
                "\"1.2.3\" is not a quantity: it must start with a number, like 100m or 64Mi",
            ),
            ("-1", "\"-1\" must not be negative"),
            ("9e60", "\"9e60\" is too large a quantity"),
            (
                "64MB",
                "\"64MB\" is not a quantity: the suffix \"MB\" is none of n u m k M G T P E Ki Mi Gi Ti Pi Ei or an exponent like e3",
            ),
        ] {
            assert_eq!(Quantity::parse(text).unwrap_err().to_string(), message, "{text}");
        }
    }

    #[test]
    fn prints_whole_units_or_thousandths() {
        for (text, printed) in [("64Mi", "67108864"), ("100m", "100m"), ("1500u", "2m")] {
            assert_eq!(Quantity::parse(text).unwrap().to_string(), printed);
        }
    }
}
