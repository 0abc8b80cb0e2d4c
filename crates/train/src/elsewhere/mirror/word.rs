//! The word by which somebody elsewhere cancels the run: an object beside the run's, whatever is in it.

use std::path::Path;

use tessera_stores::{Object, Place, StoreError};
use tessera_track::request_cancel;

use super::super::runs::CANCEL;
use crate::error::TrainError;

/// Where the word is left.
pub(super) struct Word {
    place: Place,
    /// One that was there before this process was.
    old: Option<Object>,
}

impl Word {
    /// Looks whether an old one is at a run's place.
    pub(super) fn look(run: &Place) -> Result<Self, StoreError> {
        let place = run.join(CANCEL);
        Ok(Self { old: place.file()?, place })
    }

    /// Takes the old one away: whoever takes up the run again does not mean what was asked before. What was asked since stays.
    pub(super) fn forget_old(&mut self) -> Result<(), StoreError> {
        if self.old.is_some() && self.place.file()? == self.old {
            self.place.delete()?;
        }
        self.old = None;
        Ok(())
    }

    /// Hands the word on to the run's folder here, and takes it away only once it is there.
    pub(super) fn hand_on(&self, folder: &Path) -> Result<(), TrainError> {
        if self.place.file()?.is_some() {
            request_cancel(folder)?;
            self.place.delete()?;
        }
        Ok(())
    }
}
