//! `store` without its feature: no state folder can be opened, and whoever configures one gets an error. Pure.

use std::path::PathBuf;

/// The error about a state folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The program was built without the feature that keeps state folders.
    #[error("{folder} cannot be used: this program is built without the feature `store` of phalanx")]
    NotBuilt {
        /// The folder.
        folder: PathBuf,
    },
}

/// The journal that nobody has.
pub(crate) mod journal {
    use std::path::{Path, PathBuf};

    use super::StoreError;

    pub(crate) enum Change<'a> {
        Put { id: u64, body: &'a [u8] },
        Delete { id: u64 },
    }

    pub(crate) struct Recovered {
        pub(crate) records: Vec<(u64, Vec<u8>)>,
        pub(crate) damage: Option<Damage>,
    }

    pub(crate) struct Damage {
        pub(crate) lost: usize,
        pub(crate) kept_aside: PathBuf,
        pub(crate) what: String,
    }

    /// Has no value.
    pub(crate) enum Journal {}

    impl Journal {
        pub(crate) fn open(folder: &Path) -> Result<(Self, Recovered), StoreError> {
            Err(StoreError::NotBuilt { folder: folder.to_owned() })
        }

        pub(crate) fn write<'a>(&mut self, _: impl IntoIterator<Item = Change<'a>>) -> Result<(), StoreError> {
            match *self {}
        }

        pub(crate) fn sync(&mut self) -> Result<(), StoreError> {
            match *self {}
        }
    }
}
