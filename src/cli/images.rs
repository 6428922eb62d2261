//! The flags about the images of jobs. A miner has them too, and hands them on.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::values::duration;
use crate::base::size::byte_size;
use crate::executor::runner::{ImagePattern, ImageSettings, PullPolicy};
use crate::miner::ExecutorSettings;
use crate::proc::image_store::ImageBounds;

/// How many images are kept if neither flag nor executors say more: so many users in turn find theirs.
const KEPT_LEAST: usize = 4;

/// Which images jobs may have, how they get here, and how many stay.
#[derive(Debug, clap::Args)]
pub(super) struct ImageArgs {
    /// When the registry is asked for a job's image
    #[arg(long, value_enum, default_value_t, env = "PHALANX_PULL")]
    pull: PullPolicy,
    /// Begin a pull again that shows no progress for this long; an engine shows none within a layer [default: never]
    #[arg(long, value_name = "DUR", value_parser = duration, env = "PHALANX_PULL_SILENCE")]
    pub(super) pull_silence: Option<Duration>,
    /// Only images whose names match, as registry.example/acme/* (a star is any text); may be repeated
    #[arg(long, value_name = "PATTERN", env = "PHALANX_ALLOW_IMAGE", value_delimiter = ',')]
    allow_image: Vec<ImagePattern>,
    /// Let jobs have images that only your own registry log-ins can pull
    #[arg(long, env = "PHALANX_REGISTRY_LOGIN")]
    registry_login: bool,
    /// Space for images that jobs have brought, as 100GB; those that were not used for longest go
    #[arg(long, value_name = "SIZE", default_value = "100GB", value_parser = byte_size, env = "PHALANX_IMAGE_SPACE")]
    image_space: u64,
    /// What stays free on the engine's disk, or images that jobs have brought go; with less than 1GB no job is taken;
    /// 0: nobody looks
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "10GB",
        value_parser = byte_size,
        env = "PHALANX_IMAGE_FREE_SPACE"
    )]
    image_free_space: u64,
    /// How many images that jobs have brought are kept [default: as many as executors, at least 4]
    #[arg(long, value_name = "N", env = "PHALANX_IMAGE_COUNT")]
    image_count: Option<usize>,
}

impl ImageArgs {
    /// The settings, with the folder where it is written down which images jobs have brought.
    pub(super) fn settings(self, folder: Option<PathBuf>) -> ImageSettings {
        let bounds = self.bounds(0);
        ImageSettings {
            policy: self.pull,
            silence: self.pull_silence,
            allowed: self.allow_image,
            registry_login: self.registry_login,
            folder,
            bounds,
        }
    }

    /// What is kept for so many executors.
    pub(super) fn bounds(&self, executors: usize) -> ImageBounds {
        let count = self.image_count.unwrap_or(executors.max(KEPT_LEAST));
        ImageBounds { count, bytes: self.image_space, free: self.image_free_space }
    }

    /// Tells executors the same; there are so many of them.
    pub(super) fn hand_on(&self, executors: usize, settings: &mut ExecutorSettings) {
        let policy = self.pull.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        settings.set("PHALANX_PULL", policy);
        if let Some(silence) = self.pull_silence {
            settings.set("PHALANX_PULL_SILENCE", format!("{}ms", silence.as_millis()));
        }
        if !self.allow_image.is_empty() {
            let allowed: Vec<String> = self.allow_image.iter().map(ImagePattern::to_string).collect();
            settings.set("PHALANX_ALLOW_IMAGE", allowed.join(","));
        }
        settings.set("PHALANX_REGISTRY_LOGIN", self.registry_login.to_string());
        settings.set("PHALANX_IMAGE_SPACE", self.image_space.to_string());
        settings.set("PHALANX_IMAGE_FREE_SPACE", self.image_free_space.to_string());
        settings.set("PHALANX_IMAGE_COUNT", self.bounds(executors).count.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        images: ImageArgs,
    }

    #[test]
    fn the_settings_are_handed_on_as_they_were_given() {
        let parse = |arguments: &[&str]| Line::try_parse_from([&["x"], arguments].concat());
        let none = parse(&[]).unwrap().images;
        let mut settings = ExecutorSettings::default();
        none.hand_on(1, &mut settings);
        assert!(!format!("{settings:?}").contains("SILENCE"));
        // A large layer is silent for long.
        assert_eq!(none.settings(None).silence, None);
        let given = ["--pull", "missing", "--pull-silence", "5m", "--allow-image", "acme/*,busybox"];
        let line = parse(&[&given[..], &["--image-space", "5MB"]].concat()).unwrap();
        let mut settings = ExecutorSettings::default();
        line.images.hand_on(7, &mut settings);
        let told = format!("{settings:?}");
        for part in [
            "PULL\", \"missing",
            "SILENCE\", \"300000ms",
            "ALLOW_IMAGE\", \"acme/*,busybox",
            "SPACE\", \"5000000",
            "FREE_SPACE\", \"10000000000",
            "COUNT\", \"7",
            "LOGIN\", \"false",
        ] {
            assert!(told.contains(part), "{part} is not in {told}");
        }
        assert_eq!(line.images.settings(None).bounds, ImageBounds { count: 4, bytes: 5_000_000, free: 10_000_000_000 });
        assert!(parse(&["--pull", "auto"]).is_err() && parse(&["--image-space", "5 apples"]).is_err());
    }
}
