//! Settings that are one of a few words.

use std::fmt;

/// A setting whose values are words.
pub(super) trait Keyword: Copy + 'static {
    /// Every value, in the order messages name them.
    const ALL: &'static [Self];

    /// The value as run files write it.
    fn word(self) -> &'static str;

    /// The words of all values, for messages: `a, b or c`.
    fn words() -> String {
        either(Self::ALL.iter().map(|value| value.word()))
    }
}

/// `a, b or c`.
pub(super) fn either<W: fmt::Display>(words: impl IntoIterator<Item = W>) -> String {
    let mut words: Vec<String> = words.into_iter().map(|word| word.to_string()).collect();
    match words.pop() {
        Some(last) if !words.is_empty() => format!("{} or {last}", words.join(", ")),
        Some(only) => only,
        None => String::new(),
    }
}

/// Declares an enum of words, each written once: beside its variant.
macro_rules! keyword {
    ($(#[$about:meta])* $name:ident { $($(#[$what:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$what])* $variant,)+
        }

        impl $crate::spec::keyword::Keyword for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str($crate::spec::keyword::Keyword::word(*self))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

pub(super) use keyword;
