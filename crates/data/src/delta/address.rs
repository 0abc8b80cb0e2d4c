//! A Delta table as run files name it.

use std::fmt;
use std::path::Path;

use super::LOG_FOLDER;

/// What stands before the place of a table.
const SCHEME: &str = "delta:";

/// Where a table is, and which version of it is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableAddress {
    /// A folder of this machine, or a url.
    pub place: String,
    /// The version; `None`: the newest.
    pub version: Option<u64>,
}

impl TableAddress {
    /// Reads `delta:<path or url>[@version]`; `None`: the text names no such table. What stands behind the last `@` is a
    /// version if it is a number, unless the whole is the folder of a table on this machine.
    pub fn parse(text: &str) -> Option<Self> {
        let place = text.strip_prefix(SCHEME).filter(|place| !place.is_empty())?;
        let is_folder = Path::new(place).join(LOG_FOLDER).is_dir();
        let (place, version) = if is_folder { (place, None) } else { Self::split(place) };
        Some(Self { place: place.to_owned(), version })
    }

    /// Cuts a version off a name.
    pub fn split(text: &str) -> (&str, Option<u64>) {
        let cut = text
            .rsplit_once('@')
            .filter(|(place, number)| !place.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
        let cut = cut.and_then(|(place, number)| Some((place, number.parse().ok()?)));
        cut.map_or((text, None), |(place, version)| (place, Some(version)))
    }
}

impl fmt::Display for TableAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SCHEME}{}", self.place)?;
        self.version.map_or(Ok(()), |version| write!(formatter, "@{version}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tables_with_and_without_a_version() {
        for (text, place, version) in [
            ("delta:data/table", "data/table", None),
            ("delta:/data/table@7", "/data/table", Some(7)),
            ("delta:s3://bucket/table@0", "s3://bucket/table", Some(0)),
            (
                "delta:abfss://box@account.dfs.core.windows.net/t",
                "abfss://box@account.dfs.core.windows.net/t",
                None,
            ),
            ("delta:a@b/c", "a@b/c", None),
            ("delta:a@99999999999999999999", "a@99999999999999999999", None),
        ] {
            let address = TableAddress::parse(text).unwrap();
            assert_eq!((address.place.as_str(), address.version), (place, version));
            assert_eq!(address.to_string(), text);
        }
        for text in ["delta:", "data/delta:x", "main.default.table"] {
            assert_eq!(TableAddress::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_folder_whose_own_name_ends_like_a_version() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("chat@2024").display().to_string();
        let parse = |text: &str| TableAddress::parse(text).map(|address| (address.place, address.version));
        assert_eq!(parse(&format!("delta:{place}")).unwrap(), (place.replace("@2024", ""), Some(2024)));
        std::fs::create_dir_all(Path::new(&place).join(LOG_FOLDER)).unwrap();
        assert_eq!(parse(&format!("delta:{place}")).unwrap(), (place.clone(), None));
        assert_eq!(parse(&format!("delta:{place}@7")).unwrap(), (place, Some(7)));
    }
}
