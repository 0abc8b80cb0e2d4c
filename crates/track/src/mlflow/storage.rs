//! The folder in an object store in which a catalog keeps the files of a version, and the credentials that it hands out for it.

#[cfg(feature = "stores")]
pub(super) use built::Storage;
#[cfg(not(feature = "stores"))]
pub(super) use not_built::Storage;

#[cfg(feature = "stores")]
mod built {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use tessera_files::IoContext;
    use tessera_stores::{Credentials, Place, Problem, StoreError};
    use tessera_workspace::Granted;

    use super::super::MlflowError;
    use super::super::client::Content;

    /// What other kinds of credentials are for.
    const UNKNOWN: &str = "a store that is none of Amazon's, Microsoft's and Google's";
    /// How long before their end credentials are no more begun with.
    const MARGIN: i64 = 5 * 60 * 1000;

    /// A folder that may be written to.
    pub(in super::super) struct Storage {
        root: Place,
        expires: Option<i64>,
    }

    impl std::fmt::Debug for Storage {
        /// The folder only.
        fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(formatter, "Storage({})", self.root)
        }
    }

    impl Storage {
        /// The folder of this address, with the credentials that were handed out for it.
        pub fn open(location: &str, granted: Granted) -> Result<Self, MlflowError> {
            let refused = |kind| MlflowError::CatalogStorage { location: location.to_owned(), kind };
            if let Some(kind) = granted.keeps_from_writing() {
                return Err(refused(kind));
            }
            let expires = granted.expires();
            let credentials = Credentials::from(granted.access().map_err(|_| refused(UNKNOWN))?);
            let root = Place::with_credentials(location, &credentials).map_err(in_storage)?;
            Ok(Self { root, expires })
        }

        /// Whether its credentials are good for a while.
        pub fn is_open(&self) -> bool {
            self.expires.is_none_or(|time| Timestamp::now().as_millisecond() + MARGIN < time)
        }

        /// Puts a file there, and makes sure that the store has all of it.
        pub fn put(&self, name: &str, content: &Content) -> Result<(), MlflowError> {
            let place = self.root.join(name);
            let size = content.length()?;
            match content {
                Content::Text(text) => place.write(text.clone().into_bytes()),
                Content::File(path) => {
                    let mut file = std::fs::File::open(path).context("open", path)?;
                    place.upload(&mut file, path, size, &mut |_| {})
                }
            }
            .map_err(in_storage)?;
            match place.file().map_err(in_storage)? {
                Some(object) if object.size == size => Ok(()),
                found => Err(MlflowError::Storage {
                    reason: format!(
                        "{place}: it has {} of the {size} bytes that it took",
                        found.map_or(0, |object| object.size)
                    ),
                    passes: true,
                }),
            }
        }

        /// The bytes of each file that is there, by its name.
        pub fn list(&self) -> Result<BTreeMap<String, u64>, MlflowError> {
            let there = self.root.list().map_err(in_storage)?;
            Ok(there.into_iter().map(|object| (object.name, object.size)).collect())
        }
    }

    /// What failed there. New credentials are asked for where the old ones are the reason.
    fn in_storage(error: StoreError) -> MlflowError {
        let passes = error.passes() || matches!(error.problem, Problem::Expired(_));
        MlflowError::Storage { reason: error.to_string(), passes }
    }
}

#[cfg(not(feature = "stores"))]
mod not_built {
    use std::collections::BTreeMap;

    use tessera_workspace::Granted;

    use super::super::MlflowError;
    use super::super::client::Content;

    /// There is none.
    #[derive(Debug)]
    pub(in super::super) enum Storage {}

    impl Storage {
        pub fn open(location: &str, granted: Granted) -> Result<Self, MlflowError> {
            let kind = granted
                .keeps_from_writing()
                .unwrap_or("an object store, which this build does not speak with");
            Err(MlflowError::CatalogStorage { location: location.to_owned(), kind })
        }

        pub fn is_open(&self) -> bool {
            match *self {}
        }

        pub fn put(&self, _: &str, _: &Content) -> Result<(), MlflowError> {
            match *self {}
        }

        pub fn list(&self) -> Result<BTreeMap<String, u64>, MlflowError> {
            match *self {}
        }
    }
}
