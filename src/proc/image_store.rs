//! The images that jobs have brought to this machine: which are in use, and which go when there are too many.
//!
//! A folder has a file for each image that a job has named. Its lock is shared by all who use the image, its text is
//! the image's name if a job has brought it, and its time is that of the last use. A second file beside it is locked by
//! whoever pulls. So executors, which are processes of their own, do not pull one image twice at a time, and what a
//! killed one holds is free. What the operator has brought is never written down, and never goes. One more file counts
//! what all processes have done.

use std::fmt::Display;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest, Sha256};

use super::disk::EngineDisk;
use super::docker::Docker;
pub use super::evict::ImageBounds;
use super::evict::{Kept, exceeds, oldest_first};
use super::images::Image;
use super::lock::{Hold, lock, try_lock};
use super::tool::ToolError;
use crate::base::shutdown::Shutdown;
use crate::ops::errors::{ErrorClass, ErrorHandler};

/// The end of the name of the file that is locked while its image is pulled.
const PULL: &str = ".pull";

/// The file of the [`Tally`].
const TALLY: &str = "all.tally";

/// How long the tally's file may be held by others, who read and write three numbers.
const TALLY_TIME: Duration = Duration::from_secs(5);

/// The images of one folder.
#[derive(Debug, Clone)]
pub struct ImageStore {
    docker: Docker,
    disk: EngineDisk,
    folder: PathBuf,
    bounds: ImageBounds,
    errors: ErrorHandler,
}

/// What was done since the folder was made, by whatever process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Pulls that have brought an image, or found it as it was.
    pub pulled: u64,
    /// Pulls that have failed.
    pub failed: u64,
    /// Images that were removed because there were too many, or the disk was too full.
    pub evicted: u64,
}

/// An image that somebody prepares, alone; nobody pulls it meanwhile.
#[derive(Debug)]
pub struct Preparing {
    /// Its text is when the image was prepared last.
    pulling: File,
    used: InUse,
    waited: bool,
    began: SystemTime,
}

/// An image that is in use as long as this lives, and does not go meanwhile.
#[derive(Debug)]
pub struct InUse(File);

impl ImageStore {
    /// Makes the folder, its owner's alone, if it is not there.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(docker: Docker, folder: impl Into<PathBuf>, bounds: ImageBounds) -> io::Result<Self> {
        let folder = folder.into();
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self { disk: EngineDisk::new(docker.clone()), docker, folder, bounds, errors: ErrorHandler::default() })
    }

    /// The same, which tells this handler of what it goes on after.
    #[must_use]
    pub fn telling(self, errors: &ErrorHandler) -> Self {
        Self { errors: errors.clone(), ..self }
    }

    fn trouble(&self, what: &dyn Display) {
        self.errors.report(ErrorClass::Rejected, "images", what);
    }

    /// The disk of the images.
    pub fn disk(&self) -> &EngineDisk {
        &self.disk
    }

    /// The file of an image: by its digest, because a name may hold slashes and be long.
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(hex::encode(Sha256::digest(name)))
    }

    /// Has an image in use, whether or not it is here yet. Blocks only while somebody removes it.
    ///
    /// # Errors
    /// As [`ImageStore::prepare`].
    pub fn hold(&self, name: &str, stop: &Shutdown, deadline: Instant) -> io::Result<InUse> {
        lock(&self.file(name), Hold::Shared, stop, deadline).map(|(file, _)| InUse(file))
    }

    /// Begins to prepare an image. Blocks while another process prepares it.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] after `deadline`, [`io::ErrorKind::Interrupted`] after a cancel, or what the system
    /// says.
    pub fn prepare(&self, name: &str, stop: &Shutdown, deadline: Instant) -> io::Result<Preparing> {
        let began = SystemTime::now();
        let file = self.file(name);
        let (pulling, waited) = lock(&file.with_extension(&PULL[1..]), Hold::Alone, stop, deadline)?;
        let used = self.hold(name, stop, deadline)?;
        Ok(Preparing { pulling, used, waited, began })
    }

    /// Pulls an image that the caller prepares. If the disk is short of room, images that jobs have brought make some
    /// before.
    ///
    /// # Errors
    /// As [`Docker::pull`].
    pub fn pull(
        &self,
        image: &str,
        silence: Option<Duration>,
        stop: &Shutdown,
        deadline: Instant,
    ) -> Result<(), ToolError> {
        if let Err(error) = self.make_room_if_short(stop, deadline) {
            self.trouble(&format_args!("image {image} is pulled with as much room as there is: {error}"));
        }
        let pulled = self.docker.pull(image, silence, stop, deadline);
        match pulled {
            Ok(()) => self.count(Tally { pulled: 1, ..Tally::default() }),
            Err(ToolError::Failed { .. } | ToolError::TimedOut(_)) => {
                self.count(Tally { failed: 1, ..Tally::default() })
            }
            Err(_) => {}
        }
        pulled
    }

    /// After a pull: if the name leads to another image than `before`, that one goes sooner or later, unless it has
    /// another name.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub fn replaced(&self, image: &str, before: &Image, stop: &Shutdown, deadline: Instant) -> Result<(), ToolError> {
        if self.docker.image(image, stop, deadline)?.is_some_and(|now| now.id != before.id) {
            log::info!("image {image}: its name has moved on from {}", before.id);
            if let Err(error) = self.note(&before.id) {
                let what = format_args!("image {}, which no name leads to any more, may be left: {error}", before.id);
                self.trouble(&what);
            }
        }
        Ok(())
    }

    /// Writes down that an image, by its number, is like one that jobs have brought.
    fn note(&self, id: &str) -> io::Result<()> {
        // Somebody who removes it has the lock: then it is gone anyway.
        let Some(mut file) = try_lock(&self.file(id), Hold::Shared)? else { return Ok(()) };
        write_text(&mut file, id)?;
        file.set_modified(SystemTime::UNIX_EPOCH)
    }

    /// What was done, by this process and by others.
    ///
    /// # Errors
    /// What the system says.
    pub fn tally(&self) -> io::Result<Tally> {
        self.tally_file().and_then(|mut file| text_of(&mut file)).map(|text| Tally::read(&text))
    }

    fn count(&self, more: Tally) {
        let counted = self.tally_file().and_then(|mut file| {
            let Tally { pulled, failed, evicted } = Tally::read(&text_of(&mut file)?);
            let sums = [pulled + more.pulled, failed + more.failed, evicted + more.evicted];
            write_text(&mut file, &sums.map(|sum| sum.to_string()).join(" "))
        });
        if let Err(error) = counted {
            self.trouble(&format_args!("what was done with them is not counted: {error}"));
        }
    }

    fn tally_file(&self) -> io::Result<File> {
        let deadline = Instant::now() + TALLY_TIME;
        lock(&self.folder.join(TALLY), Hold::Alone, &Shutdown::new(), deadline).map(|(file, _)| file)
    }

    /// As [`ImageStore::make_room`] if less of the disk is free than is to be, else nothing.
    ///
    /// # Errors
    /// As [`ImageStore::make_room`].
    pub fn make_room_if_short(&self, stop: &Shutdown, deadline: Instant) -> Result<Vec<String>, ToolError> {
        match self.free_bytes(self.bounds, stop, deadline)? {
            Some(free) if free < self.bounds.free => self.make_room(stop, deadline),
            _ => Ok(Vec::new()),
        }
    }

    /// Bytes of the disk that are free, if the bounds ask for some and it is of this machine.
    fn free_bytes(&self, bounds: ImageBounds, stop: &Shutdown, deadline: Instant) -> Result<Option<u64>, ToolError> {
        if bounds.free == 0 {
            return Ok(None);
        }
        let deadline = deadline.min(Instant::now() + self.docker.time);
        Ok(self.disk.free(stop, deadline)?.map(|free| free.bytes))
    }

    /// Removes images that jobs have brought and nobody uses, the least recently used first, until the rest is within
    /// the bounds. Says which went. Blocks as the engine takes to remove them, until `deadline` or a cancel.
    ///
    /// # Errors
    /// If the engine does not answer, or the folder cannot be read.
    pub fn make_room(&self, stop: &Shutdown, deadline: Instant) -> Result<Vec<String>, ToolError> {
        self.shrink(self.bounds, stop, deadline)
    }

    /// Removes all images that jobs have brought and nobody uses, because the disk is full.
    ///
    /// # Errors
    /// As [`ImageStore::make_room`].
    pub fn empty(&self, stop: &Shutdown, deadline: Instant) -> Result<Vec<String>, ToolError> {
        self.shrink(ImageBounds::NONE, stop, deadline)
    }

    fn shrink(&self, bounds: ImageBounds, stop: &Shutdown, deadline: Instant) -> Result<Vec<String>, ToolError> {
        let answer_by = || deadline.min(Instant::now() + self.docker.time);
        let doing = "look through the images that jobs have brought";
        let failed = |error: io::Error| ToolError::Failed { doing, text: error.to_string() };
        let kept = self.kept().map_err(failed)?;
        let mut sized = Vec::with_capacity(kept.len());
        for image in kept {
            match self.docker.image(&image.name, stop, answer_by())? {
                // One without a name has got one from somebody else.
                Some(found) if image.name == found.id && found.names > 0 => self.forget(&image.name).map_err(failed)?,
                Some(found) => sized.push(Kept { bytes: found.bytes, ..image }),
                // The operator has removed it.
                None => self.forget(&image.name).map_err(failed)?,
            }
        }
        let (mut count, mut bytes) = (sized.len(), sized.iter().map(|image| image.bytes).sum::<u64>());
        let mut gone = Vec::new();
        for image in oldest_first(sized) {
            let free = self.free_bytes(bounds, stop, deadline)?;
            if !exceeds(bounds, (count, bytes), free) {
                break;
            }
            // In use, or just now prepared.
            let Some(file) = try_lock(&self.file(&image.name), Hold::Alone).map_err(failed)? else { continue };
            match self.docker.remove_image(&image.name, stop, answer_by()) {
                Ok(()) => {
                    self.remove_files(&self.file(&image.name)).map_err(failed)?;
                    log::info!("image {} is removed: jobs have brought more than there is room for", image.name);
                    self.count(Tally { evicted: 1, ..Tally::default() });
                    count -= 1;
                    bytes -= image.bytes;
                    gone.push(image.name);
                }
                Err(error @ (ToolError::Start { .. } | ToolError::TimedOut(_) | ToolError::Cancelled(_))) => {
                    return Err(error);
                }
                Err(error) => log::info!("image {} stays: {error}", image.name),
            }
            drop(file);
        }
        Ok(gone)
    }

    /// The images that jobs have brought, without their sizes.
    fn kept(&self) -> io::Result<Vec<Kept>> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some() {
                continue;
            }
            let name = match fs::read_to_string(&path) {
                Ok(name) => name,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if !name.is_empty() {
                kept.push(Kept { name, bytes: 0, last_use: modified(&path)? });
            } else if let Some(_unused) = try_lock(&path, Hold::Alone)? {
                // Of an image that no job has brought, or that there is not: it was for the locks.
                self.remove_files(&path)?;
            }
        }
        Ok(kept)
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        match try_lock(&self.file(name), Hold::Alone)? {
            Some(_held) => self.remove_files(&self.file(name)),
            None => Ok(()),
        }
    }

    /// Removes the file of an image, whose lock we hold, and the one beside it if nobody has that.
    fn remove_files(&self, file: &Path) -> io::Result<()> {
        fs::remove_file(file)?;
        let pull = file.with_extension(&PULL[1..]);
        match try_lock(&pull, Hold::Alone)? {
            Some(_held) => fs::remove_file(pull),
            None => Ok(()),
        }
    }
}

impl Tally {
    /// Three numbers; what a crash has left of them counts as none.
    fn read(text: &str) -> Self {
        let mut numbers = text.split(' ').map(|number| number.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Self { pulled: next(), failed: next(), evicted: next() }
    }
}

impl Preparing {
    /// Whether another process had it before.
    pub fn has_waited(&self) -> bool {
        self.waited
    }

    /// Whether another process has prepared the image while this one waited for it.
    pub fn is_done(&mut self) -> bool {
        let last = text_of(&mut self.pulling).ok().and_then(|text| text.parse().ok());
        self.waited && last.is_some_and(|last: u128| last >= nanos(self.began))
    }

    /// The image is here; whoever waits for it may go on. `brought` names it if this job has brought it.
    ///
    /// # Errors
    /// What the system says.
    pub fn done(mut self, brought: Option<&str>) -> io::Result<InUse> {
        write_text(&mut self.pulling, &nanos(SystemTime::now()).to_string())?;
        if let Some(image) = brought {
            write_text(&mut self.used.0, image)?;
        }
        self.used.touch()?;
        Ok(self.used)
    }
}

impl InUse {
    /// Whether a job has brought the image.
    ///
    /// # Errors
    /// What the system says.
    pub fn is_job_s(&mut self) -> io::Result<bool> {
        Ok(!text_of(&mut self.0)?.is_empty())
    }

    /// It was used now.
    ///
    /// # Errors
    /// What the system says.
    pub fn touch(&self) -> io::Result<()> {
        self.0.set_modified(SystemTime::now())
    }

    /// It is the operator's from now on, whoever has brought it.
    ///
    /// # Errors
    /// What the system says.
    pub fn is_operator_s(&mut self) -> io::Result<()> {
        write_text(&mut self.0, "")
    }
}

fn text_of(file: &mut File) -> io::Result<String> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(text)
}

fn write_text(file: &mut File, text: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text.as_bytes())
}

fn nanos(at: SystemTime) -> u128 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos()
}

fn modified(path: &Path) -> io::Result<SystemTime> {
    match fs::metadata(path) {
        Ok(data) => data.modified(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(SystemTime::now()),
        Err(error) => Err(error),
    }
}
