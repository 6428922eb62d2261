//! How the image of a job gets here: pulled or not, again or not, or that of the last time.

use std::fmt::{self, Display};
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::common::{Prepared, RunError};
use crate::base::backoff::{Backoff, BackoffConfig};
use crate::base::glob;
use crate::base::rng::Rng;
use crate::base::shutdown::{Level, Shutdown};
use crate::executor::image_name;
use crate::ops::cause::{Cause, Fault, retry_after};
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::proc::docker::Docker;
use crate::proc::image_store::{ImageBounds, ImageStore};
use crate::proc::images::Image;
use crate::proc::tool::ToolError;

/// Between two tries of a pull. A registry that is asked too often says no for longer.
const BACKOFF: BackoffConfig = BackoffConfig {
    base: Duration::from_millis(500),
    cap: Duration::from_secs(10),
    stable_after: Duration::from_secs(60),
};

/// The digits of a whole number of an image. No repository is named by so many.
const NUMBER_CHARS: usize = 64;

/// How often a pull is tried if the image is here already, as it was pulled last time.
const TRIES_IF_HERE: u32 = 3;

/// An engine that has had so long to look for an image and says nothing is in trouble. It takes milliseconds.
const LOOK_TIME: Duration = Duration::from_secs(1);

/// When a registry is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum PullPolicy {
    /// For each job, as the Python executor does, because a tag may have moved; not for a digest that is here
    #[default]
    Always,
    /// Only for an image that is not here
    Missing,
    /// Never: jobs get the images that are here
    Never,
}

/// A pattern for names of images, in which `*` stands for any text and all else for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePattern(String);

impl FromStr for ImagePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err("it should be like registry.example/acme/* or python:3.12".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ImagePattern {
    /// Whether it is about this image. Both are read as the engine reads names: without a host `docker.io`, without a
    /// folder there `library`. A pattern without a tag is for all tags and digests.
    pub fn matches(&self, image: &str) -> bool {
        let (image, pattern) = (image_name::whole(image), image_name::whole(&self.0));
        let has_tag = pattern.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
        let with = |tag: &str| glob::matches_stars(&format!("{pattern}{tag}"), &image);
        with("") || !has_tag && [":*", "@*"].into_iter().any(with)
    }
}

/// What an operator says of the images of jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSettings {
    /// When a registry is asked.
    pub policy: PullPolicy,
    /// How long a pull may show no progress, if not until its deadline. An engine tells each step of a layer, not its
    /// bytes: a large layer is silent until it is here.
    pub silence: Option<Duration>,
    /// Which images jobs may name; empty: all.
    pub allowed: Vec<ImagePattern>,
    /// Whether registries see the operator's log-ins.
    pub registry_login: bool,
    /// Where it is written down which images jobs have brought; without such a folder they stay.
    pub folder: Option<PathBuf>,
    /// How many of them are kept.
    pub bounds: ImageBounds,
}

impl Default for ImageSettings {
    /// Always, no limit of silence, all images, no log-in, no folder; 4 images and 100 GB, and
    /// 10 GB of the disk that stay free.
    fn default() -> Self {
        Self {
            policy: PullPolicy::default(),
            silence: None,
            allowed: Vec::new(),
            registry_login: false,
            folder: None,
            bounds: ImageBounds { count: 4, bytes: 100_000_000_000, free: 10_000_000_000 },
        }
    }
}

/// Makes sure that the image can be run.
pub(super) fn prepare(
    docker: &Docker,
    settings: &ImageSettings,
    image: &str,
    (token, deadline): (&Shutdown, Instant),
    errors: &ErrorHandler,
) -> Result<Prepared, RunError> {
    if !settings.allowed.is_empty() && !settings.allowed.iter().any(|pattern| pattern.matches(image)) {
        let allowed: Vec<String> = settings.allowed.iter().map(ImagePattern::to_string).collect();
        return Err(RunError::Spec(format!("image {image} is not allowed here; allowed are {}", allowed.join(", "))));
    }
    let pull = Pull { docker, settings, image, token, deadline, errors };
    let Some(folder) = &settings.folder else {
        let here = pull.look()?;
        if pull.is_wanted(here.as_ref())? {
            pull.run(None, here.as_ref(), false)?;
        }
        return Ok(Prepared(None));
    };
    let book = |source: io::Error| match source.kind() {
        io::ErrorKind::Interrupted => RunError::Tool(ToolError::Cancelled("prepare the image")),
        io::ErrorKind::TimedOut => RunError::PullTimedOut(image.to_owned()),
        _ => RunError::Io { doing: "keep the book of images", source },
    };
    let store = ImageStore::open(docker.clone(), folder, settings.bounds).map_err(book)?.telling(errors);
    // From here on it stays.
    let mut in_use = store.hold(image, token, deadline).map_err(book)?;
    let here = pull.look()?;
    if pull.is_wanted(here.as_ref())? {
        // Whoever pulls may take longer than this job has; it needs time for more than its image.
        let wait_until = match here {
            Some(_) => Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2,
            None => deadline,
        };
        match store.prepare(image, token, wait_until) {
            Ok(mut preparing) => {
                let here = if preparing.has_waited() { pull.look()? } else { here };
                let brought_before = in_use.is_job_s().map_err(book)?;
                if !preparing.is_done() && pull.is_wanted(here.as_ref())? {
                    pull.run(Some(&store), here.as_ref(), brought_before)?;
                }
                let brings = here.is_none() && !brought_before;
                in_use = preparing.done(brings.then_some(image)).map_err(book)?;
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut && here.is_some() => {
                pull.trouble(
                    ErrorClass::Rejected,
                    &"is pulled by somebody else for long, so the one that is here is used",
                );
            }
            Err(error) => return Err(book(error)),
        }
    }
    in_use.touch().map_err(book)?;
    // The image is here, so the job goes on whatever becomes of the others.
    if let Err(error) = store.make_room(token, deadline) {
        let what = format_args!("images that nobody uses may be left: {error}");
        errors.report(ErrorClass::Retry, "image-room", &what);
    }
    Ok(Prepared(Some(in_use)))
}

/// Whether the disk of this machine is full, so that room may help. The same words of a registry are none of ours.
fn is_full(error: &str, cause: Cause) -> bool {
    let error = error.to_lowercase();
    let full = ["no space left", "quota exceeded", "thin pool has "];
    cause.fault == Fault::Operator && full.iter().any(|words| error.contains(words))
}

struct Pull<'a> {
    docker: &'a Docker,
    settings: &'a ImageSettings,
    image: &'a str,
    token: &'a Shutdown,
    deadline: Instant,
    errors: &'a ErrorHandler,
}

impl Pull<'_> {
    fn trouble(&self, class: ErrorClass, what: &dyn Display) {
        self.errors.report(class, "image-pull", &format_args!("image {} {what}", self.image));
    }

    /// The image, if it is here. A client that fails is asked once more: a signal to all processes of a service ends
    /// it, and not the job.
    fn look(&self) -> Result<Option<Image>, RunError> {
        self.look_for(self.image)
    }

    fn look_for(&self, name: &str) -> Result<Option<Image>, RunError> {
        let Self { docker, token, .. } = *self;
        let begun = Instant::now();
        let deadline = self.deadline.min(begun + docker.time);
        let found = match docker.image(name, token, deadline) {
            Err(ToolError::Failed { .. }) => docker.image(name, token, deadline),
            found => found,
        };
        found.map_err(|error| match error {
            ToolError::TimedOut(_) if begun.elapsed() < LOOK_TIME => RunError::PullTimedOut(self.image.to_owned()),
            ToolError::TimedOut(_) => error.into(),
            error => self.failed(error),
        })
    }

    /// Whether a registry is to be asked.
    fn is_wanted(&self, here: Option<&Image>) -> Result<bool, RunError> {
        let Self { settings, image, .. } = *self;
        if let Some(found) = here
            && self.is_number(&found.id)?
        {
            let text = format!("image {image} is the number of an image; give a name, as in ubuntu:latest");
            return Err(RunError::Spec(text));
        }
        let wanted = match settings.policy {
            PullPolicy::Always => here.is_none() || !image.contains("@sha256:"),
            PullPolicy::Missing => here.is_none(),
            PullPolicy::Never => false,
        };
        if !wanted && here.is_none() {
            return Err(RunError::Spec(format!("image {image} is not here, and none is pulled (--pull never)")));
        }
        Ok(wanted)
    }

    /// `brought_before`: only jobs have brought it.
    fn run(&self, store: Option<&ImageStore>, here: Option<&Image>, brought_before: bool) -> Result<(), RunError> {
        let Self { docker, settings, image, token, deadline, .. } = *self;
        // An engine that hangs leaves time to use the one that is here.
        let pull_by = match here {
            Some(_) => Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2,
            None => deadline,
        };
        let (mut backoff, mut rng, mut room_made) = (Backoff::new(BACKOFF), Rng::from_entropy(), false);
        // What the last try that was answered has shown tells more than a deadline that passes in the next.
        let mut shown: Option<(String, Cause)> = None;
        loop {
            log::info!("pulling image {image}");
            let pulled = match store {
                Some(store) => store.pull(image, settings.silence, token, pull_by),
                None => docker.pull(image, settings.silence, token, pull_by),
            };
            let error = match pulled {
                Ok(()) => break,
                Err(ToolError::TimedOut(_)) if here.is_some() => {
                    self.trouble(ErrorClass::Rejected, &"is not pulled in time, so the one that is here is used");
                    return Ok(());
                }
                Err(ToolError::TimedOut(_)) => {
                    let late = || RunError::PullTimedOut(image.to_owned());
                    return Err(shown.map_or_else(late, |(error, cause)| self.error(error, cause)));
                }
                Err(ToolError::Failed { text, .. }) => text,
                Err(error) => return Err(error.into()),
            };
            let cause = Cause::of_pull(&error, image);
            let tries = backoff.attempt() + 1;
            if is_full(&error, cause) {
                if !room_made && self.make_room(store) {
                    room_made = true;
                    continue;
                }
                // An older one would hide it.
                return Err(self.error(error, cause));
            }
            // One that only jobs have brought is no longer theirs if the registry says so.
            if here.is_some() && (cause.fault != Fault::Job || !brought_before) {
                let lookup = error.contains("no such host");
                if !cause.passing || cause.fault == Fault::Job || lookup || tries >= TRIES_IF_HERE {
                    self.instead(&error);
                    return Ok(());
                }
            } else if !cause.passing {
                return Err(self.error(error, cause));
            }
            let now = Instant::now();
            let pause = backoff.next_delay(now, rng.unit()).max(retry_after(&error).unwrap_or_default());
            // The miner is to hear of it within the limit.
            let so_far = format!("{error} ({tries} tries)");
            if pause >= pull_by.saturating_duration_since(now) {
                if here.is_some() {
                    self.instead(&so_far);
                    return Ok(());
                }
                return Err(self.error(so_far, cause));
            }
            let again = format_args!("cannot be pulled, again in {:.1} s: {error}", pause.as_secs_f64());
            self.trouble(cause.class(), &again);
            shown = Some((so_far, cause));
            if token.wait_for(Level::Cancel, pause) {
                return Err(ToolError::Cancelled("pull the image").into());
            }
        }
        if let (Some(store), Some(before)) = (store, here)
            && brought_before
        {
            store.replaced(image, before, token, deadline).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    /// Whether the engine has found the image by its number. No registry and no pattern for names knows numbers, so any
    /// image that is here could be had by one.
    fn is_number(&self, found: &str) -> Result<bool, RunError> {
        let Self { image, .. } = *self;
        if !image_name::may_be_number(image, found) {
            return Ok(false);
        }
        // With a tag it can only be a name; the others are no names.
        let may_be_name = !image.contains(':') && image.len() < NUMBER_CHARS;
        Ok(!may_be_name || self.look_for(&format!("{image}:latest"))?.is_none())
    }

    fn instead(&self, error: &str) {
        let what = format_args!("cannot be pulled, so the one that is here is used: {error}");
        self.trouble(ErrorClass::Rejected, &what);
    }

    /// Whether something went.
    fn make_room(&self, store: Option<&ImageStore>) -> bool {
        match store.map(|store| store.empty(self.token, self.deadline)) {
            Some(Ok(gone)) => !gone.is_empty(),
            Some(Err(error)) => {
                self.trouble(ErrorClass::Rejected, &format_args!("gets no room: {error}"));
                false
            }
            None => false,
        }
    }

    fn error(&self, text: String, cause: Cause) -> RunError {
        RunError::Engine { doing: format!("pull image {}", self.image), text, cause }
    }

    fn failed(&self, error: ToolError) -> RunError {
        match error {
            ToolError::Failed { doing, text } => {
                let cause = Cause::of_pull(&text, self.image);
                RunError::Engine { doing: doing.to_owned(), text, cause }
            }
            error => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_as_names_are() {
        for (pattern, image, matches) in [
            ("busybox", "busybox", true),
            ("busybox", "docker.io/library/busybox:1.36", true),
            ("busybox", "busybox@sha256:00", true),
            ("busybox:1.36", "busybox:1.37", false),
            ("busybox", "busybox2", false),
            ("busybox", "acme/busybox", false),
            ("acme/*", "acme/app/x:1", true),
            ("acme/*", "docker.io/acme/app", true),
            ("acme/*", "registry.example/acme/app", false),
            ("docker.io/*", "EVIL/app", false),
            ("registry.example/acme/*", "registry.example/acme/app@sha256:00", true),
            ("registry.example/acme/*:stable", "registry.example/acme/app:stable", true),
            ("registry.example/acme/*:stable", "registry.example/acme/app:edge", false),
            ("*.acme.io/*", "r.acme.io/x", true),
            ("*", "localhost:5000/x", true),
            ("localhost:5000/x", "localhost:5000/x:2", true),
            ("[::1]:5000/app", "[::1]:5000/app:2", true),
            ("[::1]:5000/*", "1:5000/app", false),
            ("acme/ap?", "acme/app", false),
        ] {
            let parsed: ImagePattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(image), matches, "{pattern} {image}");
        }
        assert!("".parse::<ImagePattern>().is_err() && "a b".parse::<ImagePattern>().is_err());
    }

    #[test]
    fn an_engine_that_does_not_look_in_time_is_in_trouble_unless_the_job_has_no_time_left() {
        let (settings, token, folder) = (ImageSettings::default(), Shutdown::new(), tempfile::tempdir().unwrap());
        let program = folder.path().join("docker");
        std::fs::write(&program, "#!/bin/sh\nexec sleep 1000\n").unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let docker = Docker { program, ..Docker::default() };
        let look = |left| {
            let deadline = Instant::now() + left;
            let errors = ErrorHandler::default();
            let settings = &settings;
            Pull { docker: &docker, settings, image: "acme/app", token: &token, deadline, errors: &errors }.look()
        };
        let late = look(Duration::ZERO).unwrap_err();
        assert!(matches!(&late, RunError::PullTimedOut(image) if image == "acme/app"), "{late}");
        let silent = look(LOOK_TIME * 2).unwrap_err();
        assert!(matches!(&silent, RunError::Tool(ToolError::TimedOut("look for the image"))), "{silent}");
    }
}
