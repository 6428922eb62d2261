//! Volumes: what a job finds under `/volume/`.

use jiter::JsonValue;

use super::enums::VolumeType;
use super::error::Errors;
use super::json::Writer;
use super::schema::{Wire, message, tagged_union};

tagged_union! {
    /// Where the files of a job come from.
    pub enum Volume by "volume_type" {
        VolumeType::Inline => /// A zip inside the message.
        Inline(InlineVolume),
        VolumeType::ZipUrl => /// A zip by its address.
        ZipUrl(ZipUrlVolume),
        VolumeType::SingleFile => /// One file by its address.
        SingleFile(SingleFileVolume),
        VolumeType::MultiVolume => /// Several of the others.
        Multi(MultiVolume),
        VolumeType::HuggingfaceVolume => /// A repository of Hugging Face.
        Huggingface(HuggingfaceVolume),
    }
}

tagged_union! {
    /// A part of a [`MultiVolume`]: any volume but another of those.
    pub enum SingleVolume by "volume_type" {
        VolumeType::Inline => /// A zip inside the message.
        Inline(InlineVolume),
        VolumeType::ZipUrl => /// A zip by its address.
        ZipUrl(ZipUrlVolume),
        VolumeType::SingleFile => /// One file by its address.
        SingleFile(SingleFileVolume),
        VolumeType::HuggingfaceVolume => /// A repository of Hugging Face.
        Huggingface(HuggingfaceVolume),
    }
}

message! {
    /// A zip inside the message.
    Ignore struct InlineVolume {
        @"volume_type" = VolumeType::Inline,
        /// The zip in base64.
        contents: String,
        /// Where to unpack it, below the volume.
        relative_path: Option<String> = None,
    }
}

message! {
    /// A zip by its address.
    Ignore struct ZipUrlVolume {
        @"volume_type" = VolumeType::ZipUrl,
        /// The address.
        contents: String,
        /// Where to unpack it, below the volume.
        relative_path: Option<String> = None,
    }
}

message! {
    /// One file by its address.
    Ignore struct SingleFileVolume {
        @"volume_type" = VolumeType::SingleFile,
        /// The address.
        url: String,
        /// The file's name, below the volume.
        relative_path: String,
    }
}

message! {
    /// A repository of Hugging Face.
    Ignore struct HuggingfaceVolume {
        @"volume_type" = VolumeType::HuggingfaceVolume,
        /// `owner/name`.
        repo_id: String,
        /// `model`, `dataset` or `space`.
        repo_type: Option<String> = None,
        /// A branch, a tag or a commit.
        revision: Option<String> = None,
        /// Where to put it, below the volume.
        relative_path: Option<String> = None,
        /// Which files of it.
        allow_patterns: Option<AllowPatterns> = None,
        /// The key to a private repository.
        token: Option<String> = None,
    }
}

message! {
    /// Several volumes at once.
    Ignore struct MultiVolume {
        @"volume_type" = VolumeType::MultiVolume,
        /// The parts.
        volumes: Vec<SingleVolume>,
    }
}

/// Which files of a repository: a pattern or a list of them; kept apart because signatures see the difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowPatterns {
    /// One pattern.
    One(String),
    /// Any of several.
    Any(Vec<String>),
}

impl Wire for AllowPatterns {
    fn decode(value: &JsonValue<'_>, errors: &mut Errors) -> Option<Self> {
        let start = errors.mark();
        if let Some(one) = errors.at("str", |errors| String::decode(value, errors)) {
            return Some(AllowPatterns::One(one));
        }
        let any = errors.at("list[str]", |errors| Vec::decode(value, errors))?;
        errors.forget(start);
        Some(AllowPatterns::Any(any))
    }

    fn encode(&self, out: &mut Writer) {
        match self {
            AllowPatterns::One(pattern) => pattern.encode(out),
            AllowPatterns::Any(patterns) => patterns.encode(out),
        }
    }
}
