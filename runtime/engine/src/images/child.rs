//! The config documents of images that are made here, as docker writes them.

use berth_dockerfile::Config;
use berth_image::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    api::SERVER_VERSION,
    container::platform::{Platform, own_architecture},
};

/// What is new in an image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Child<'a> {
    pub author: &'a str,
    pub comment: &'a str,
    /// The id of the container that it is made of; empty if there was none.
    pub container: &'a str,
    /// What that container was asked for. Its command is the step that the history shows.
    pub container_config: &'a Config,
    pub config: &'a Config,
    /// The layer on top of those of the parent. `None` if it has nothing new.
    pub diff_id: Option<&'a Digest>,
    /// In RFC 3339.
    pub created: &'a str,
}

/// What an image of a tar says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Imported<'a> {
    pub comment: &'a str,
    pub config: &'a Config,
    /// This machine's if there is none.
    pub platform: Option<&'a Platform>,
    pub diff_id: &'a Digest,
    /// In RFC 3339.
    pub created: &'a str,
}

/// What a parent hands down, beside its config.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Parent {
    architecture: String,
    variant: String,
    #[serde(rename = "os.version")]
    os_version: Option<String>,
    #[serde(rename = "os.features")]
    os_features: Option<Vec<String>>,
    rootfs: ParentRootFs,
    history: Option<Vec<Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ParentRootFs {
    diff_ids: Option<Vec<String>>,
}

/// The document, with its fields in dockerd's order, which is that of their names.
#[derive(Debug, Serialize)]
struct Document<'a> {
    architecture: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    author: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    comment: &'a str,
    config: &'a Config,
    #[serde(skip_serializing_if = "str::is_empty")]
    container: &'a str,
    container_config: &'a Config,
    created: &'a str,
    docker_version: &'static str,
    history: Vec<Step<'a>>,
    os: &'static str,
    #[serde(rename = "os.features", skip_serializing_if = "Option::is_none")]
    os_features: Option<Vec<String>>,
    #[serde(rename = "os.version", skip_serializing_if = "Option::is_none")]
    os_version: Option<String>,
    rootfs: RootFs,
    #[serde(skip_serializing_if = "String::is_empty")]
    variant: String,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Step<'a> {
    /// As the parent has it.
    Old(Value),
    New(NewStep<'a>),
}

#[derive(Debug, Serialize)]
struct NewStep<'a> {
    created: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    author: &'a str,
    #[serde(skip_serializing_if = "String::is_empty")]
    created_by: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    comment: &'a str,
    #[serde(skip_serializing_if = "is_false")]
    empty_layer: bool,
}

#[derive(Debug, Serialize)]
struct RootFs {
    r#type: &'static str,
    diff_ids: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// The config document of an image that is made of the one with the document `parent`, or of none.
///
/// # Errors
/// The document of the parent cannot be parsed.
pub(crate) fn document(parent: Option<&[u8]>, child: Child<'_>) -> anyhow::Result<Vec<u8>> {
    let parent: Parent = match parent {
        Some(document) => serde_json::from_slice(document)?,
        None => Parent::default(),
    };
    let mut diff_ids = parent.rootfs.diff_ids.unwrap_or_default();
    diff_ids.extend(child.diff_id.map(Digest::to_string));
    let step = NewStep {
        created: child.created,
        author: child.author,
        created_by: child.container_config.cmd.as_deref().unwrap_or_default().join(" "),
        comment: child.comment,
        empty_layer: child.diff_id.is_none(),
    };
    let before = parent.history.unwrap_or_default().into_iter().map(Step::Old);
    let architecture = Some(parent.architecture).filter(|name| !name.is_empty());
    Ok(serde_json::to_vec(&Document {
        architecture: architecture.unwrap_or_else(|| own_architecture().to_owned()),
        author: child.author,
        comment: "",
        config: child.config,
        container: child.container,
        container_config: child.container_config,
        created: child.created,
        docker_version: SERVER_VERSION,
        history: before.chain([Step::New(step)]).collect(),
        os: "linux",
        os_features: parent.os_features,
        os_version: parent.os_version,
        rootfs: RootFs { r#type: "layers", diff_ids },
        variant: parent.variant,
    })?)
}

/// The config document of an image of one layer, which was a tar.
///
/// # Errors
/// It cannot be written as JSON.
pub(crate) fn imported(image: &Imported<'_>) -> anyhow::Result<Vec<u8>> {
    let (architecture, variant) = match image.platform {
        Some(platform) => (platform.architecture.clone(), platform.variant.clone()),
        None => (own_architecture().to_owned(), String::new()),
    };
    let step = NewStep {
        created: image.created,
        author: "",
        created_by: String::new(),
        comment: image.comment,
        empty_layer: false,
    };
    Ok(serde_json::to_vec(&Document {
        architecture,
        author: "",
        comment: image.comment,
        config: image.config,
        container: "",
        container_config: &Config::default(),
        created: image.created,
        docker_version: SERVER_VERSION,
        history: vec![Step::New(step)],
        os: "linux",
        os_features: None,
        os_version: None,
        rootfs: RootFs { r#type: "layers", diff_ids: vec![image.diff_id.to_string()] },
        variant,
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_adds_a_step_and_perhaps_a_layer() {
        let config = Config { cmd: Some(vec!["sh".into(), "-c".into()]), ..Config::default() };
        let layer = Digest::sha256("layer");
        let child = Child {
            author: "me",
            comment: "",
            container: "c0",
            container_config: &config,
            config: &config,
            diff_id: Some(&layer),
            created: "1970-01-01T00:00:01Z",
        };
        let first = document(None, child).unwrap();
        let second = Child { author: "", comment: "why", diff_id: None, ..child };
        let second = document(Some(&first), second).unwrap();
        let second: Value = serde_json::from_slice(&second).unwrap();
        assert_eq!(second["rootfs"]["diff_ids"], serde_json::json!([layer.as_str()]));
        let time = "1970-01-01T00:00:01Z";
        assert_eq!(
            second["history"],
            serde_json::json!([
                { "created": time, "author": "me", "created_by": "sh -c" },
                { "created": time, "created_by": "sh -c", "comment": "why", "empty_layer": true },
            ])
        );
        assert_eq!(second.get("author"), None);
        assert!(document(Some(b"{"), child).is_err());
    }
}
