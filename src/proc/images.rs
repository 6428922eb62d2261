//! Images of the engine: whether one is here, pulled, removed, and how large it is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::docker::Docker;
use super::tool::{Limits, ToolError, watched};
use crate::base::shutdown::Shutdown;

/// An image that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its number, `sha256:…`, whatever its names.
    pub id: String,
    /// Its size. What it shares with others is counted for each.
    pub bytes: u64,
    /// How many names it has, as `app:1`; digests are none.
    pub names: usize,
}

/// How many names of images are looked at: more make none of them easier to find.
const NAMES_MAX: usize = 4096;

impl Docker {
    /// The names of the images that are here, as `busybox:1`; those without a name are left out.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub fn image_names(&self, stop: &Shutdown, deadline: Instant) -> Result<Vec<String>, ToolError> {
        let args = ["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"];
        let listed = self.run("list the images", &args, stop, deadline)?;
        let named = listed.lines().filter(|name| !name.contains("<none>")).take(NAMES_MAX);
        Ok(named.map(str::to_owned).collect())
    }

    /// The image, if it is here.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub fn image(&self, name: &str, stop: &Shutdown, deadline: Instant) -> Result<Option<Image>, ToolError> {
        let doing = "look for the image";
        let args = ["image", "inspect", "--format", "{{.Id}} {{.Size}} {{len .RepoTags}}", name];
        match self.run(doing, &args, stop, deadline) {
            Ok(text) => {
                let mut fields = text.split(' ');
                let id = fields.next().unwrap_or_default().to_owned();
                let mut number = || fields.next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
                let bytes = number();
                Ok(Some(Image { id, bytes, names: usize::try_from(number()).unwrap_or(0) }))
            }
            // The second is podman's.
            Err(ToolError::Failed { text, .. })
                if ["no such image", "image not known"].iter().any(|words| text.to_lowercase().contains(words)) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Pulls an image and logs how it gets on. An engine that says nothing for `silence` is given up;
    /// without a terminal it says nothing while it downloads a layer, however long that takes.
    ///
    /// # Errors
    /// [`ToolError::Failed`] if it cannot be had, or what kept us from asking.
    pub fn pull(
        &self,
        image: &str,
        silence: Option<Duration>,
        stop: &Shutdown,
        deadline: Instant,
    ) -> Result<(), ToolError> {
        let limits = Limits { deadline, silence };
        let mut lines = |bytes: &[u8]| {
            String::from_utf8_lossy(bytes).lines().for_each(|line| log::debug!("image {image}: {line}"));
        };
        watched(self.command(&["pull", image]), "pull the image", stop, limits, &mut lines).map(drop)
    }

    /// The numbers of the images of a repository that have a label, each with its value.
    ///
    /// # Errors
    /// If the engine does not answer, or one of them goes meanwhile.
    pub fn labelled_images(
        &self,
        repository: &str,
        label: &str,
        stop: &Shutdown,
        deadline: Instant,
    ) -> Result<BTreeMap<String, String>, ToolError> {
        let filters = [format!("reference={repository}"), format!("label={label}")];
        let args = ["image", "ls", "--quiet", "--no-trunc", "--filter", &filters[0], "--filter", &filters[1]];
        let listed = self.run("list images", &args, stop, deadline)?;
        // One that has two names is listed twice; podman lists numbers otherwise than it shows them.
        let ids: BTreeSet<&str> = listed.split_whitespace().collect();
        let format = format!("{{{{.Id}}}} {{{{index .Config.Labels \"{label}\"}}}}");
        let value = |id: &str| {
            let told =
                self.run("look for the image", &["image", "inspect", "--format", &format, id], stop, deadline)?;
            let (id, value) = told.split_once(' ').unwrap_or((&told, ""));
            Ok((id.to_owned(), value.to_owned()))
        };
        ids.into_iter().map(value).collect()
    }

    /// Takes a name from an image, and removes the image with its last name. One that a container uses stays.
    ///
    /// # Errors
    /// What the engine says, as that a container uses it.
    pub fn remove_image(&self, name: &str, stop: &Shutdown, deadline: Instant) -> Result<(), ToolError> {
        self.run("remove the image", &["image", "rm", "--", name], stop, deadline).map(drop)
    }
}
