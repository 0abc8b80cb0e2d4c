//! Exact decimal numbers of time strings.

use std::fmt;

/// A number at least 0 as it was written: `digits · 10^exponent`, the last digit not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decimal {
    digits: u128,
    exponent: i32,
}

impl Decimal {
    /// Reads `12`, `1_000`, `0.5`, `3e4`. Underscores stand between digits, as in Python.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (mantissa, exponent) = match text.split_once('e') {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i16>().ok()?),
            None => (text, 0),
        };
        let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let (whole, decimals) = (digits(whole)?, digits(decimals)?);
        if whole.is_empty() && decimals.is_empty() {
            return None;
        }
        let mut number = Self {
            digits: format!("0{whole}{decimals}").parse().ok()?,
            exponent: i32::from(exponent) - i32::try_from(decimals.len()).ok()?,
        };
        while number.digits != 0 && number.digits.is_multiple_of(10) {
            number.digits /= 10;
            number.exponent += 1;
        }
        Some(number)
    }

    /// The value, where it is a whole number that fits.
    pub(super) fn whole(self) -> Option<u64> {
        if self.digits == 0 {
            return Some(0);
        }
        let scale = 10_u128.checked_pow(u32::try_from(self.exponent).ok()?)?;
        u64::try_from(self.digits.checked_mul(scale)?).ok()
    }
}

/// The digits of one side of the point, without the underscores between them.
fn digits(text: &str) -> Option<String> {
    let misplaced = text.starts_with('_') || text.ends_with('_') || text.contains("__");
    let plain: String = text.chars().filter(|&character| character != '_').collect();
    (!misplaced && plain.bytes().all(|byte| byte.is_ascii_digit())).then_some(plain)
}

/// A part of a run as the decimal that was written, so that products with counts are exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction {
    numerator: u64,
    /// A power of ten, the smallest that leaves the numerator whole.
    denominator: u64,
}

impl Fraction {
    /// The whole run.
    pub const ONE: Self = Self { numerator: 1, denominator: 1 };

    /// The same number as a fraction, where numerator and denominator fit.
    pub(super) fn new(number: Decimal) -> Option<Self> {
        if let Some(whole) = number.whole() {
            return Some(Self { numerator: whole, denominator: 1 });
        }
        let decimals = number.exponent.checked_neg().and_then(|decimals| u32::try_from(decimals).ok())?;
        Some(Self {
            numerator: u64::try_from(number.digits).ok()?,
            denominator: 10_u64.checked_pow(decimals)?,
        })
    }

    /// `hundredths` of a run, for defaults.
    pub(crate) const fn hundredths(hundredths: u64) -> Self {
        let mut fraction = Self { numerator: hundredths, denominator: 100 };
        while fraction.denominator > 1 && fraction.numerator.is_multiple_of(10) {
            fraction.numerator /= 10;
            fraction.denominator /= 10;
        }
        fraction
    }

    /// Whether the fraction is 0.
    pub fn is_zero(self) -> bool {
        self.numerator == 0
    }

    /// Whether the fraction passes the whole run.
    pub fn exceeds_one(self) -> bool {
        self.numerator > self.denominator
    }

    /// The fraction of `total`, rounded up.
    pub fn of_rounded_up(self, total: u64) -> u64 {
        let exact = u128::from(self.numerator) * u128::from(total);
        u64::try_from(exact.div_ceil(u128::from(self.denominator))).unwrap_or(u64::MAX)
    }

    /// How many whole times the fraction of `total` fits into `count`. The fraction and the total are above 0.
    pub(super) fn times_within(self, count: u64, total: u64) -> u128 {
        let length = u128::from(self.numerator) * u128::from(total);
        (u128::from(count) * u128::from(self.denominator)).checked_div(length).unwrap_or(0)
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.numerator / self.denominator, self.numerator % self.denominator);
        if rest == 0 {
            return write!(out, "{whole}");
        }
        let decimals = self.denominator.ilog10() as usize;
        write!(out, "{whole}.{rest:0decimals$}")
    }
}
