//! Files on their way: fetched whole or not at all, and uploaded.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use object_store::{GetOptions, GetRange, ObjectStoreExt, WriteMultipart};
use tessera_files::{AtomicFile, IoContext};

use crate::error::{Problem, StoreError};
use crate::place::{Object, Place, quoted};

/// How often in a row nothing may come before a file is given up.
const ATTEMPTS: u32 = 5;
/// The pause before the first repetition; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(200);
/// Bytes that are uploaded by one request.
const PART: u64 = 16 << 20;
/// Parts of one file that stores take.
const MOST_PARTS: u64 = 9000;
/// Parts that are under way at a time.
const PARTS_AT_ONCE: usize = 4;

impl Place {
    /// Fetches the file at this place, as `object` tells of it, to `path`, whose folder must be there. A connection that
    /// drops is taken up again where it ended, as long as the store still has the same content. `progress` is told the bytes
    /// that are there.
    ///
    /// # Errors
    /// When the store refuses, stays away, or has another content by now; and when the file cannot be written.
    pub fn download(
        &self,
        object: &Object,
        path: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        let mut file = AtomicFile::create(path).map_err(|error| self.error(error))?;
        let (mut done, mut attempts, mut pause) = (0, 1, PAUSE);
        while done < object.size {
            let before = done;
            let error = match self.block_on(self.fetch_rest(object, &mut done, (&mut file, path), progress)) {
                Ok(()) if done == object.size => break,
                Ok(()) => {
                    self.error(Problem::Unreachable(format!("{done} bytes came instead of {}", object.size)))
                }
                Err(error) => error,
            };
            if !error.passes() {
                return Err(error);
            }
            if done > before {
                (attempts, pause) = (0, PAUSE);
            }
            if attempts >= ATTEMPTS {
                return Err(error);
            }
            if object.etag.is_none() && done > 0 {
                // Nothing would tell the rest of this content from that of another.
                file = AtomicFile::create(path).map_err(|error| self.error(error))?;
                done = 0;
            }
            std::thread::sleep(pause);
            (attempts, pause) = (attempts + 1, pause * 2);
        }
        file.finish().map_err(|error| self.error(error))
    }

    /// Fetches what is still missing of a file.
    async fn fetch_rest(
        &self,
        object: &Object,
        done: &mut u64,
        (file, path): (&mut AtomicFile, &Path),
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        let options = GetOptions {
            if_match: object.etag.clone().filter(|etag| !etag.starts_with("W/")),
            version: object.version.clone(),
            range: (*done > 0).then_some(GetRange::Offset(*done)),
            ..GetOptions::default()
        };
        let result =
            self.store().get_opts(self.path(), options).await.map_err(|error| self.explain(&error))?;
        if result.meta.size != object.size
            || (object.etag.is_some() && result.meta.e_tag.clone().map(quoted) != object.etag)
        {
            return Err(self.error(Problem::Changed));
        }
        let mut bytes = result.into_stream();
        while let Some(piece) = bytes.next().await {
            let piece = piece.map_err(|error| self.explain(&error))?;
            if *done + piece.len() as u64 > object.size {
                return Err(self.error(Problem::Changed));
            }
            file.write_all(&piece).context("write", path).map_err(|error| self.error(error))?;
            *done += piece.len() as u64;
            progress(*done);
        }
        Ok(())
    }

    /// The content of the file at this place, which has at most `limit` bytes.
    ///
    /// # Errors
    /// When nothing is there, it is larger, or the store refuses or cannot be reached.
    pub fn read(&self, limit: u64) -> Result<Vec<u8>, StoreError> {
        let read = async {
            let result = self.store().get(self.path()).await?;
            match result.meta.size {
                size if size > limit => Ok(Err(Problem::TooLarge { size, limit })),
                _ => result.bytes().await.map(|bytes| Ok(bytes.to_vec())),
            }
        };
        let read: Result<_, object_store::Error> = self.block_on(read);
        read.map_err(|error| self.explain(&error))?.map_err(|problem| self.error(problem))
    }

    /// The last `most` bytes of the file at this place, or all of it where it is shorter, as `object` tells of it. One that has grown
    /// meanwhile is read as far as it was known.
    ///
    /// # Errors
    /// When nothing is there, or the store refuses or cannot be reached.
    pub fn read_end(&self, object: &Object, most: u64) -> Result<Vec<u8>, StoreError> {
        if object.size == 0 {
            return Ok(Vec::new());
        }
        // Not counted from the end, which not every store can.
        let range = object.size.saturating_sub(most)..object.size;
        let read = self.block_on(self.store().get_range(self.path(), range));
        read.map(|bytes| bytes.to_vec()).map_err(|error| self.explain(&error))
    }

    /// Writes a small file.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub fn write(&self, content: Vec<u8>) -> Result<(), StoreError> {
        if self.is_single_file() {
            return Err(self.error(Problem::SingleFile));
        }
        let written = self.block_on(self.store().put(self.path(), content.into()));
        written.map(drop).map_err(|error| self.explain(&error))
    }

    /// Uploads the next `size` bytes of `file`, which is at `path`; a large one in parts, and it is there only once all of
    /// them are. `progress` is told the bytes that are under way or there.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached, and when the file is shorter.
    pub fn upload(
        &self,
        file: &mut File,
        path: &Path,
        size: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        let part = PART.max(size.div_ceil(MOST_PARTS));
        let mut next = |left: u64| -> Result<Vec<u8>, StoreError> {
            let mut piece = vec![0; usize::try_from(left.min(part)).unwrap_or_default()];
            file.read_exact(&mut piece).context("read", path).map_err(|error| self.error(error))?;
            Ok(piece)
        };
        if size <= part {
            self.write(next(size)?)?;
            progress(size);
            return Ok(());
        }
        self.block_on(async {
            let upload =
                self.store().put_multipart(self.path()).await.map_err(|error| self.explain(&error))?;
            let chunk = usize::try_from(part).unwrap_or(usize::MAX);
            let mut upload = WriteMultipart::new_with_chunk_size(upload, chunk);
            let mut left = size;
            while left > 0 {
                let piece = match upload.wait_for_capacity(PARTS_AT_ONCE).await {
                    Ok(()) => next(left),
                    Err(error) => Err(self.explain(&error)),
                };
                match piece {
                    Ok(piece) => {
                        left -= piece.len() as u64;
                        upload.put(piece.into());
                        progress(size - left);
                    }
                    Err(error) => {
                        // What cannot be taken back either is the store's to clean up.
                        let _ = upload.abort().await;
                        return Err(error);
                    }
                }
            }
            upload.finish().await.map(drop).map_err(|error| self.explain(&error))
        })
    }
}
