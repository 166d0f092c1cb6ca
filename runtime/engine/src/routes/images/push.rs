//! `POST /images/{name}/push`: a push, with a line of JSON for each step of a layer.

use std::sync::Arc;

use berth_base::error::Error;
use berth_image::{AuthConfig, Digest, Image, LayerPush, PushReport, normalize};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use crate::{
    api::registry::auth,
    container::platform::Platform,
    engine::Engine,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
        version::Version,
    },
    image_name::{self, familiar, repository, tag_reference},
    progress,
    routes::Call,
};

/// How many lines wait for a client.
const WAITING: usize = 100;

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// `docker.io/library/busybox`
    repository: String,
    which: Which,
}

#[derive(Debug, PartialEq, Eq)]
enum Which {
    /// `docker.io/library/busybox:1`
    Tag(String),
    All,
    Digest,
}

/// Pushes one tag of a repository, or all of them. The push ends if the client goes away. As with
/// dockerd, most failures are lines of the answer.
///
/// # Errors
/// 400 for what is no name, 404 for another platform than the image's.
pub(in crate::routes) async fn push(call: Call, name: &str) -> Result<Answer> {
    let wanted = wanted(&call, name);
    let Call { engine, request, .. } = call;
    let auth = auth(request.headers());
    // The docker CLI sends one that says nothing, and does not read the answer if the connection is
    // closed before that is written.
    body::discard(request.into_body()).await;
    let wanted = wanted?;
    let (lines, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let pushing = async {
            if let Err(error) = run(&engine, &wanted, auth, &lines).await {
                let _ = lines.send(progress::failed(&error.message)).await;
            }
        };
        tokio::select! {
            () = pushing => {}
            // Nobody reads the lines any more.
            () = lines.closed() => tracing::info!(?wanted, "the client has gone, and the push with it"),
        }
    });
    Ok(body::lines(receiver))
}

fn wanted(call: &Call, name: &str) -> Result<Wanted> {
    let wanted = Wanted::parse(name, call.query.get("tag"))?;
    // Clients of older versions send a platform without meaning anything by it.
    if call.version >= Version(46) {
        check_platform(call, &wanted)?;
    }
    Ok(wanted)
}

impl Wanted {
    fn parse(name: &str, tag: &str) -> Result<Self> {
        let full = normalize(name).ok_or_else(|| image_name::invalid(name))?;
        let of = |which| Self { repository: repository(&full).to_owned(), which };
        if !tag.is_empty() {
            let tagged = tag_reference(name, tag)?.unwrap_or_default();
            return Ok(of(Which::Tag(tagged)));
        }
        let last = name.rsplit('/').next().unwrap_or_default();
        Ok(match (full.contains('@'), last.contains(':')) {
            (true, _) => of(Which::Digest),
            (false, true) => of(Which::Tag(full.clone())),
            (false, false) => of(Which::All),
        })
    }

    /// As events and errors name it.
    fn shown(&self) -> &str {
        match &self.which {
            Which::Tag(tag) => familiar(tag),
            Which::All | Which::Digest => familiar(&self.repository),
        }
    }

    /// The images to push, with the name of each.
    fn images(&self, engine: &Engine) -> Result<Vec<(String, Arc<Image>)>, Error> {
        let images = &engine.node.host.images;
        let prefix = format!("{}:", self.repository);
        let by_digest = format!("{}@", self.repository);
        let mut tagged = Vec::new();
        let mut is_known = false;
        for image in images.all() {
            let names = images.names(&image);
            is_known |= names.digests.iter().any(|name| name.starts_with(&by_digest));
            let own = names.tags.into_iter().filter(|name| name.starts_with(&prefix));
            tagged.extend(own.map(|name| (name, image.clone())));
        }
        let repository = familiar(&self.repository);
        if tagged.is_empty() && !is_known {
            let text = format!("An image does not exist locally with the tag: {repository}");
            return Err(Error::not_found(text));
        }
        tagged.sort_by(|(one, _), (other, _)| one.cmp(other));
        match &self.which {
            Which::Digest => Err(Error::invalid("cannot push a digest reference")),
            Which::All if tagged.is_empty() => {
                Err(Error::not_found(format!("no tags to push for {repository}")))
            }
            Which::All => Ok(tagged),
            Which::Tag(wanted) => {
                tagged.retain(|(name, _)| name == wanted);
                match tagged.is_empty() {
                    true => Err(Error::not_found(format!("tag does not exist: {}", self.shown()))),
                    false => Ok(tagged),
                }
            }
        }
    }
}

/// # Errors
/// 404 if the image is for another platform than the one that was asked for.
fn check_platform(call: &Call, wanted: &Wanted) -> Result<()> {
    let Some(platform) = Platform::of_document(call.query.get("platform"))? else { return Ok(()) };
    let name = match &wanted.which {
        Which::Tag(tag) => tag.clone(),
        Which::All | Which::Digest => format!("{}:latest", wanted.repository),
    };
    let found = call.engine.node.host.images.find(&name).ok().flatten();
    let shown = familiar(&name);
    let image = found.ok_or_else(|| Failure::not_found(format!("No such image: {shown}")))?;
    match platform.is_of(&image) {
        true => Ok(()),
        false => Err(Failure::not_found(format!(
            "image with reference {shown} was found but its platform ({}) does not match the \
            specified platform ({platform})",
            Platform::of(&image)
        ))),
    }
}

async fn run(
    engine: &Engine,
    wanted: &Wanted,
    auth: AuthConfig,
    lines: &mpsc::Sender<Value>,
) -> Result<(), Error> {
    let repository = &wanted.repository;
    let status = format!("The push refers to repository [{repository}]");
    let _ = lines.send(json!({ "status": status })).await;
    let images = wanted.images(engine)?.into_iter();
    let tag = |name: String| name[repository.len() + 1..].to_owned();
    let images = images.map(|(name, image)| (tag(name), image)).collect();
    let (push, mut reports) = engine.node.host.images.push(repository, images, auth).await?;
    let telling = async {
        while let Some(report) = reports.recv().await {
            for line in report_lines(report) {
                let _ = lines.send(line).await;
            }
        }
    };
    // The reports end with the push, which is dropped when it has.
    let (pushed, ()) = tokio::join!(push.run(), telling);
    pushed?;
    let name = Map::from_iter([("name".to_owned(), Value::from(familiar(repository)))]);
    engine.events.publish("image", "push", wanted.shown(), name);
    Ok(())
}

fn report_lines(report: PushReport) -> Vec<Value> {
    match report {
        PushReport::Layer { diff_id, step } => vec![layer_line(&diff_id, step)],
        PushReport::Tag { tag, digest, size } => {
            let status = format!("{tag}: digest: {digest} size: {size}");
            let aux = json!({ "Tag": tag, "Digest": digest, "Size": size });
            vec![json!({ "status": status }), json!({ "progressDetail": {}, "aux": aux })]
        }
    }
}

fn layer_line(diff_id: &Digest, step: LayerPush) -> Value {
    let (status, done) = match step {
        LayerPush::Preparing => ("Preparing".to_owned(), None),
        LayerPush::Waiting => ("Waiting".to_owned(), None),
        LayerPush::Pushing { sent, total } => ("Pushing".to_owned(), Some((sent, total))),
        LayerPush::Pushed => ("Pushed".to_owned(), None),
        LayerPush::Present => ("Layer already exists".to_owned(), None),
        LayerPush::Mounted(from) => (format!("Mounted from {from}"), None),
        LayerPush::Retrying(1) => ("Retrying in 1 second".to_owned(), None),
        LayerPush::Retrying(seconds) => (format!("Retrying in {seconds} seconds"), None),
    };
    progress::line(diff_id, &status, done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tag_or_all_of_a_repository_are_asked_for() {
        let tag = |tag: &str| Which::Tag(tag.to_owned());
        let digest = format!("h:5000/a/b@sha256:{}", "0".repeat(64));
        for (name, query, repository, which, shown) in [
            (
                "busybox",
                "1",
                "docker.io/library/busybox",
                tag("docker.io/library/busybox:1"),
                "busybox:1",
            ),
            ("h:5000/a/b", "", "h:5000/a/b", Which::All, "h:5000/a/b"),
            ("h:5000/a/b:2", "", "h:5000/a/b", tag("h:5000/a/b:2"), "h:5000/a/b:2"),
            ("h:5000/a/b:2", "3", "h:5000/a/b", tag("h:5000/a/b:3"), "h:5000/a/b:3"),
            (&digest, "", "h:5000/a/b", Which::Digest, "h:5000/a/b"),
        ] {
            let wanted = Wanted::parse(name, query).unwrap();
            assert_eq!(wanted.shown(), shown);
            assert_eq!(wanted, Wanted { repository: repository.to_owned(), which });
        }
        for (name, query, message) in [
            ("h:5000/UP", "1", "invalid reference format: repository name (UP) must be lowercase"),
            ("a", "b c", "invalid tag format"),
        ] {
            assert_eq!(Wanted::parse(name, query).unwrap_err().message, message);
        }
    }
}
