//! `POST /images/create`: a pull, with a line of JSON for each step of a layer.

use std::{collections::BTreeSet, sync::Arc};

use berth_base::error::{Error, Kind};
use berth_image::{Digest, LayerProgress, LayerStep, normalize, watch};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    api::registry::auth,
    container::platform::Platform,
    engine::Engine,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
    },
    image_name, progress,
    routes::Call,
};

/// How many lines wait for a client.
const WAITING: usize = 64;

/// A pull that runs, and the reports of its layers.
struct Pull {
    engine: Arc<Engine>,
    reference: Reference,
    ended: JoinHandle<Result<Digest, Error>>,
    layers: mpsc::Receiver<LayerProgress>,
    /// What the name meant before.
    before: Option<Digest>,
}

/// A full name, `docker.io/library/busybox:latest`, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Reference {
    /// `docker.io/library/busybox`
    repository: String,
    /// A tag or a digest.
    target: String,
}

impl Reference {
    fn parse(full: &str) -> Self {
        let (repository, target) = match full.split_once('@') {
            Some((repository, digest)) => (repository, digest),
            None => full.rsplit_once(':').unwrap_or((full, "latest")),
        };
        Self { repository: repository.to_owned(), target: target.to_owned() }
    }

    fn joined(&self) -> String {
        let mark = if self.target.contains(':') { '@' } else { ':' };
        format!("{}{mark}{}", self.repository, self.target)
    }

    /// Without the host.
    fn path(&self) -> &str {
        self.repository.split_once('/').map_or(&self.repository, |(_, path)| path)
    }
}

/// Pulls an image. The pull goes on if the client goes away.
///
/// # Errors
/// 400 for what is no name; what the registry says, if no layer was reported before.
pub(in crate::routes) async fn pull(call: Call) -> Result<Answer> {
    if let Some(platform) = Platform::parse(call.query.get("platform"))?
        && !platform.is_own()
    {
        let text = format!("only images for this machine can be pulled, and none for {platform}");
        return Err(Failure::bad_request(text));
    }
    let reference = reference(call.query.get("fromImage"), call.query.get("tag"))?;
    let auth = auth(call.request.headers());
    let images = call.engine.node.host.images.clone();
    let name = reference.joined();
    let before = images.find(&name).ok().flatten().map(|image| image.id.clone());
    let (watched, mut layers) = watch();
    let pulling = async move { images.pull_watched(&name, auth, watched).await };
    let mut ended = tokio::spawn(pulling);
    let (lines, receiver) = mpsc::channel(WAITING);
    // A pull that fails before it has begun has its status; later, the answer is on its way.
    let (first, result) = tokio::select! {
        biased;
        Some(layer) = layers.recv() => (Some(layer), None),
        result = &mut ended => (None, Some(joined(result)?)),
    };
    let pull = Pull { engine: call.engine, reference, ended, layers, before };
    tokio::spawn(pull.tell(first, result, lines));
    Ok(body::lines(receiver))
}

fn joined(result: Result<Result<Digest, Error>, tokio::task::JoinError>) -> Result<Digest> {
    match result {
        Ok(pulled) => pulled.map_err(refused),
        Err(error) => Err(anyhow::Error::new(error).context("pull an image").into()),
    }
}

/// A registry that wants credentials is an internal error, as with dockerd: 401 would be the
/// engine's own refusal, at which some CLIs ask for a password, and wait for ever without a terminal.
fn refused(error: Error) -> Failure {
    match error.kind {
        Kind::Unauthenticated => Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.message),
        _ => error.into(),
    }
}

impl Pull {
    /// Sends a line for every report, and the end. A client that is gone changes nothing.
    async fn tell(
        mut self,
        first: Option<LayerProgress>,
        result: Option<Digest>,
        lines: mpsc::Sender<Value>,
    ) {
        let reference = &self.reference;
        let status = format!("Pulling from {}", reference.path());
        let _ = lines.send(json!({ "status": status, "id": reference.target })).await;
        let mut is_new = false;
        let mut seen = BTreeSet::new();
        let mut next = first;
        while let Some(layer) = next {
            is_new |= layer.step == LayerStep::Waiting;
            // An image may have a layer twice.
            if seen.insert((layer.blob.to_string(), format!("{:?}", layer.step))) {
                let _ = lines.send(layer_line(&layer)).await;
            }
            next = self.layers.recv().await;
        }
        let result = match result {
            Some(pulled) => Ok(pulled),
            None => joined((&mut self.ended).await),
        };
        match result {
            Ok(id) => {
                let is_new = is_new || self.before.as_ref() != Some(&id);
                for line in self.last_lines(&id, is_new) {
                    let _ = lines.send(line).await;
                }
            }
            Err(failure) => drop(lines.send(progress::failed(&failure.message)).await),
        }
    }

    /// What it came to, which is an event as well.
    fn last_lines(&self, id: &Digest, is_new: bool) -> Vec<Value> {
        let joined = self.reference.joined();
        let shown = image_name::familiar(&joined);
        let name = image_name::familiar(&self.reference.repository);
        if let Ok(Some(image)) = self.engine.node.host.images.find(id.as_str()) {
            self.engine.publish_image_as(&image, "pull", shown, name);
        }
        let status = match is_new {
            true => format!("Status: Downloaded newer image for {shown}"),
            false => format!("Status: Image is up to date for {shown}"),
        };
        let digest = self.digest(id);
        let digest = digest.map(|digest| json!({ "status": format!("Digest: {digest}") }));
        digest.into_iter().chain([json!({ "status": status })]).collect()
    }

    /// The digest that the registry has for it.
    fn digest(&self, id: &Digest) -> Option<String> {
        let images = &self.engine.node.host.images;
        let image = images.find(id.as_str()).ok().flatten()?;
        let prefix = format!("{}@", self.reference.repository);
        let names = images.names(&image).digests;
        names.iter().find_map(|name| name.strip_prefix(&prefix)).map(str::to_owned)
    }
}

fn layer_line(layer: &LayerProgress) -> Value {
    let (status, done) = match layer.step {
        LayerStep::Present => ("Already exists", None),
        LayerStep::Waiting => ("Pulling fs layer", None),
        LayerStep::Downloading { received, size } => ("Downloading", Some((received, size))),
        LayerStep::Downloaded => ("Download complete", None),
        LayerStep::Complete => ("Pull complete", None),
    };
    progress::line(&layer.blob, status, done)
}

fn reference(name: &str, tag: &str) -> Result<Reference> {
    let text = match tag {
        "" => name.to_owned(),
        digest if digest.contains(':') => format!("{name}@{digest}"),
        tag => format!("{name}:{tag}"),
    };
    let full = normalize(&text).ok_or_else(|| {
        let refusal = image_name::refusal(&text);
        Failure::bad_request(refusal.unwrap_or_else(|| "invalid reference format".to_owned()))
    })?;
    Ok(Reference::parse(&full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        for (name, tag, repository, target, path) in [
            ("busybox", "", "docker.io/library/busybox", "latest", "library/busybox"),
            ("localhost:5000/a/b", "1", "localhost:5000/a/b", "1", "a/b"),
            ("docker.io/x/y:2", "", "docker.io/x/y", "2", "x/y"),
        ] {
            let reference = reference(name, tag).unwrap();
            assert_eq!((&*reference.repository, &*reference.target), (repository, target));
            assert_eq!(reference.path(), path);
        }
        let digest = format!("sha256:{}", "0".repeat(64));
        let by_digest = reference("busybox", &digest).unwrap();
        assert_eq!(by_digest.joined(), format!("docker.io/library/busybox@{digest}"));
        assert!(reference("UPPER", "").unwrap_err().message.ends_with("must be lowercase"));
        assert_eq!(reference("", "").unwrap_err().message, "invalid reference format");
    }
}
