//! The thread that keeps the images of jobs: it pulls those that jobs are to find here, and has those that jobs have
//! brought make room when the engine's disk is short of it.
//!
//! Owner: the [`Miner`](super::Miner). Blocks in: the engine's client and the locks of the book of images, each with a
//! deadline of its own, and the pause until something is due. Kick: the miner's stop signal, for all of them. Ends:
//! when that is raised.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::base::backoff::exponential;
use crate::base::lock::lock;
use crate::base::shutdown::{Level, Shutdown};
use crate::ops::errors::ErrorClass;
use crate::ops::status::Board;
use crate::proc::disk::{EngineDisk, FreeSpace};
use crate::proc::docker::Docker;
use crate::proc::image_store::{ImageBounds, ImageStore, InUse, Preparing, Tally};

/// Between two pulls of an image that jobs are to find here. A registry is asked for little unless the tag has moved.
const PULL_PERIOD: Duration = Duration::from_secs(3600);

/// After a pull that has failed: doubled each time, up to [`PULL_PERIOD`].
const RETRY: Duration = Duration::from_secs(10);

/// Longest that one pull may take: a job that wants the image meanwhile waits for it, unless it is here already.
const PULL_TIME: Duration = Duration::from_secs(3600);

/// Between two looks at the disk and at what executors have done.
const LOOK_PERIOD: Duration = Duration::from_secs(30);

/// Longest that one look may take, with all images that go.
const LOOK_TIME: Duration = Duration::from_secs(300);

/// Less than this free on the engine's disk, and no job is taken: what jobs write next to their images needs some, and
/// an engine without any fails in ways of its own.
const FREE_LEAST: u64 = 1_000_000_000;

/// Where trouble with what is written down about images is reported.
const PLACE: &str = "images";

/// What a miner does about images.
#[derive(Debug, Clone)]
pub struct ImageCare {
    /// The engine, with the operator's log-ins: no job names what is pulled by it.
    pub docker: Docker,
    /// Where it is written down which images jobs have brought.
    pub folder: PathBuf,
    /// What is kept of them.
    pub bounds: ImageBounds,
    /// The images that jobs are to find here. They never go.
    pub pre_pull: Vec<String>,
    /// How long a pull may show no progress, if not for as long as it may take.
    pub silence: Option<Duration>,
}

/// What is known of the images of a miner.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImagesStatus {
    /// What is free on the engine's disk, if that is one of this machine and it is looked at.
    pub disk: Option<FreeSpace>,
    /// The images that jobs are to find here.
    pub pre_pull: Vec<PrePulled>,
}

/// An image that jobs are to find here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrePulled {
    /// Its name.
    pub image: String,
    /// Whether it is here, if that is known.
    pub is_here: bool,
    /// Why it could not be pulled the last time, if so.
    pub trouble: Option<String>,
}

/// Whether the engine's disk has room for any job.
#[derive(Debug)]
pub(super) struct Floor {
    disk: EngineDisk,
    least: u64,
}

impl Floor {
    /// The floor, if the bounds ask for free space at all.
    pub(super) fn of(care: &ImageCare) -> Option<Self> {
        let least = care.bounds.free.min(FREE_LEAST);
        (least > 0).then(|| Self { disk: EngineDisk::new(care.docker.clone()), least })
    }

    /// Looks now.
    ///
    /// # Errors
    /// That there is no room, in one line.
    pub(super) fn check(&self, stop: &Shutdown, deadline: Instant) -> Result<(), String> {
        match self.disk.free(stop, deadline) {
            Ok(Some(FreeSpace { folder, bytes })) if bytes < self.least => {
                let (folder, bytes, least) = (folder.display(), megabytes(bytes), megabytes(self.least));
                Err(format!("the disk of the engine's images ({folder}) has {bytes} MB free, less than {least} MB"))
            }
            Ok(_) => Ok(()),
            // The engine has just answered: that it does not tell this is no reason to take no job.
            Err(error) => {
                log::debug!("{error}");
                Ok(())
            }
        }
    }
}

fn megabytes(bytes: u64) -> u64 {
    bytes / 1_000_000
}

/// What the thread works with.
pub(super) struct Keeper {
    care: ImageCare,
    status: Arc<Mutex<ImagesStatus>>,
    board: Board,
}

/// One of the images that jobs are to find here.
struct Wanted {
    image: String,
    next: Instant,
    failures: u32,
    /// Nobody removes it as long as this is held.
    in_use: Option<InUse>,
}

impl Keeper {
    pub(super) fn new(care: ImageCare, board: Board) -> Self {
        let unknown = |image: &String| PrePulled { image: image.clone(), is_here: false, trouble: None };
        let pre_pull = care.pre_pull.iter().map(unknown).collect();
        Self { care, status: Arc::new(Mutex::new(ImagesStatus { disk: None, pre_pull })), board }
    }

    /// What is known, also after the thread has ended.
    pub(super) fn status(&self) -> Arc<Mutex<ImagesStatus>> {
        self.status.clone()
    }

    /// Pulls and looks at once, and then whenever something is due, until `stop` is raised.
    pub(super) fn run(self, stop: &Shutdown) {
        // Nothing here is worth that a stop waits for it.
        let cancel = Shutdown::new();
        let kicked = cancel.clone();
        let _at_once = stop.on(Level::Drain, move || kicked.cancel());
        let ImageCare { docker, folder, bounds, .. } = &self.care;
        let store = match ImageStore::open(docker.clone(), folder, *bounds) {
            Ok(store) => store.telling(&self.board.errors),
            Err(error) => {
                let why = format!("the book of images cannot be opened: {error}");
                let of_all = &mut lock(&self.status).pre_pull;
                of_all.iter_mut().for_each(|pulled| pulled.trouble = Some(why.clone()));
                let what = format_args!("no image is kept here: {why}");
                return self.board.errors.report(ErrorClass::Rejected, PLACE, &what);
            }
        };
        let start = Instant::now();
        let wanted = |image: &String| Wanted { image: image.clone(), next: start, failures: 0, in_use: None };
        let mut wanted: Vec<Wanted> = self.care.pre_pull.iter().map(wanted).collect();
        let (mut next_look, mut counted, mut told) = (start, store.tally().unwrap_or_default(), false);
        loop {
            if next_look <= Instant::now() {
                self.look(&store, (&mut counted, &mut told), &cancel);
                next_look = Instant::now() + LOOK_PERIOD;
            }
            let next_pull = wanted.iter().map(|wanted| wanted.next).min();
            match wanted.iter_mut().enumerate().find(|(_, wanted)| wanted.next <= Instant::now()) {
                // One, and then the disk may be due.
                Some((at, wanted)) if !stop.is_set() => self.pull(&store, at, wanted, &cancel),
                _ => {
                    let until = next_pull.map_or(next_look, |pull| pull.min(next_look));
                    if stop.wait(until.saturating_duration_since(Instant::now())) {
                        return;
                    }
                }
            }
        }
    }

    /// Looks at the disk, makes room if it is short, and counts what was done since the last time. A disk that cannot
    /// be looked at is told once.
    fn look(&self, store: &ImageStore, (counted, told): (&mut Tally, &mut bool), stop: &Shutdown) {
        let deadline = Instant::now() + LOOK_TIME;
        if let Err(error) = store.make_room_if_short(stop, deadline) {
            log::debug!("whether there is room for images is not known: {error}");
        }
        if self.care.bounds.free > 0 {
            // As of now, after what went; an engine that does not answer is told of elsewhere.
            let found = store.disk().free(stop, deadline.min(Instant::now() + self.care.docker.time));
            if matches!(found, Ok(None)) && !std::mem::replace(told, true) {
                log::info!("the engine keeps its images on no disk of this machine: nobody looks at what is free");
            }
            let disk = found.ok().flatten();
            if let Some(free) = &disk {
                let help = "What is free on the disk of the engine's images.";
                let free = usize::try_from(free.bytes).unwrap_or(usize::MAX);
                self.board.metrics.gauge("phalanx_miner_image_disk_free_bytes", help, &[]).set(free);
            }
            lock(&self.status).disk = disk;
        }
        match store.tally() {
            Ok(now) => {
                let pulls = |result| {
                    let help = "Pulls of images by this miner and its executors.";
                    self.board.metrics.counter("phalanx_miner_image_pulls_total", help, &[("result", result)])
                };
                let help = "Images that jobs had brought and that were removed for want of room.";
                let evicted = self.board.metrics.counter("phalanx_miner_images_evicted_total", help, &[]);
                pulls("pulled").add(now.pulled.saturating_sub(counted.pulled));
                pulls("failed").add(now.failed.saturating_sub(counted.failed));
                evicted.add(now.evicted.saturating_sub(counted.evicted));
                *counted = now;
            }
            Err(error) => {
                let what = format_args!("what was done with them is not known: {error}");
                self.board.errors.report(ErrorClass::Retry, PLACE, &what);
            }
        }
    }

    /// Pulls one image and keeps it; a failure is told and changes nothing.
    fn pull(&self, store: &ImageStore, at: usize, wanted: &mut Wanted, stop: &Shutdown) {
        let image = wanted.image.as_str();
        let pulled = self.prepare(store, image, stop);
        if stop.is_cancelled() {
            return;
        }
        let (in_use, trouble) = match pulled {
            Ok(prepared) => prepared,
            Err(error) => (None, Some(error)),
        };
        if in_use.is_some() {
            wanted.in_use = in_use;
        }
        let result = match &trouble {
            None => {
                log::info!("image {image} is here for jobs");
                (wanted.failures, wanted.next) = (0, Instant::now() + PULL_PERIOD);
                "pulled"
            }
            Some(why) => {
                let so = match wanted.in_use {
                    Some(_) => "could not be refreshed, so jobs get the one that is here",
                    None => "could not be pulled for jobs",
                };
                let what = format_args!("image {image} {so}: {why}");
                self.board.errors.report_of(ErrorClass::Reconnect, "image-pull", image, &what);
                wanted.next = Instant::now() + exponential(RETRY, PULL_PERIOD, wanted.failures);
                wanted.failures += 1;
                "failed"
            }
        };
        let help = "Pulls of the images that jobs are to find here.";
        self.board.metrics.counter("phalanx_miner_pre_pulls_total", help, &[("result", result)]).inc();
        let status = PrePulled { image: image.to_owned(), is_here: wanted.in_use.is_some(), trouble };
        lock(&self.status).pre_pull[at] = status;
    }

    /// The image, if it is here, and why it could not be pulled, if so.
    fn prepare(
        &self,
        store: &ImageStore,
        image: &str,
        stop: &Shutdown,
    ) -> Result<(Option<InUse>, Option<String>), String> {
        let (docker, deadline) = (&self.care.docker, Instant::now() + PULL_TIME);
        let answer_by = || Instant::now() + docker.time;
        let mut in_use = store.hold(image, stop, answer_by()).map_err(words)?;
        if let Some(before) = docker.image(image, stop, answer_by()).map_err(words)? {
            // No job has to wait for what is here. A digest never moves.
            let pulled = match image.contains("@sha256:") {
                true => Ok(()),
                false => store
                    .pull(image, self.care.silence, stop, deadline)
                    .and_then(|()| store.replaced(image, &before, stop, answer_by())),
            };
            in_use.is_operator_s().map_err(words)?;
            return Ok((Some(in_use), pulled.err().map(words)));
        }
        let mut preparing: Preparing = store.prepare(image, stop, deadline).map_err(words)?;
        if !preparing.is_done() {
            store.pull(image, self.care.silence, stop, deadline).map_err(words)?;
        }
        preparing.done(None).map_err(words)?;
        in_use.is_operator_s().map_err(words)?;
        Ok((Some(in_use), None))
    }
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}
