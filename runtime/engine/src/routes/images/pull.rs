//! `POST /images/create`: a pull, with a line of JSON for each step of a layer.

use std::sync::Arc;

use berth_base::error::{Error, Kind};
use berth_image::{AuthConfig, normalize};
use http::StatusCode;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::{
    api::registry::auth,
    container::platform::Platform,
    engine::Engine,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
    },
    image_name,
    images::{Pull, Pulled, Reference, words_of_registry},
    progress,
    routes::Call,
};

/// How many lines wait for a client.
const WAITING: usize = 64;

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    One(Reference),
    /// All tags of a repository.
    All(String),
}

/// Pulls an image, or all tags of a repository. The pull goes on if the client goes away.
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
    let wanted = Wanted::parse(call.query.get("fromImage"), call.query.get("tag"))?;
    let auth = auth(call.request.headers());
    let (lines, receiver) = mpsc::channel(WAITING);
    match wanted {
        Wanted::One(reference) => {
            // A pull that fails before it has begun has its status; later, the answer is on its way.
            let pull = Pull::begin(call.engine, reference, auth).await?;
            tokio::spawn(one(pull, lines));
        }
        Wanted::All(repository) => {
            let tags = call.engine.node.host.images.tags(&repository, auth.clone()).await;
            let tags = tags.map_err(|error| unknown_repository(&repository, error))?;
            tokio::spawn(all(call.engine, repository, tags, auth, lines));
        }
    }
    Ok(body::lines(receiver))
}

/// Tells one pull to its end.
async fn one(pull: Pull, lines: mpsc::Sender<Value>) {
    let (engine, shown) = (pull.engine.clone(), pull.reference.shown());
    let repository = pull.reference.repository.clone();
    match pull.tell(&lines).await {
        Ok(pulled) => pulled.end(&engine, &shown, &repository, &lines).await,
        Err(failure) => drop(lines.send(progress::failed(&failure.message)).await),
    }
}

/// Pulls one tag after the other.
async fn all(
    engine: Arc<Engine>,
    repository: String,
    tags: Vec<String>,
    auth: AuthConfig,
    lines: mpsc::Sender<Value>,
) {
    let mut last: Option<Pulled> = None;
    for target in tags {
        let reference = Reference { repository: repository.clone(), target };
        let pulled = match Pull::begin(engine.clone(), reference, auth.clone()).await {
            Ok(pull) => pull.tell(&lines).await,
            Err(failure) => Err(failure),
        };
        match pulled {
            Ok(pulled) => {
                let is_new = pulled.is_new || last.is_some_and(|last| last.is_new);
                last = Some(Pulled { is_new, ..pulled });
            }
            Err(failure) => {
                return drop(lines.send(progress::failed(&failure.message)).await);
            }
        }
    }
    if let Some(pulled) = last {
        let shown = image_name::familiar(&repository);
        pulled.end(&engine, shown, &repository, &lines).await;
    }
}

fn unknown_repository(repository: &str, error: Error) -> Failure {
    match error.kind {
        Kind::Unauthenticated => Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.message),
        Kind::NotFound => Failure::not_found(format!(
            "repository {} not found: {}",
            image_name::familiar(repository),
            words_of_registry(&error)
        )),
        _ => error.into(),
    }
}

impl Wanted {
    fn parse(name: &str, tag: &str) -> Result<Self> {
        let text = match tag {
            "" => name.to_owned(),
            digest if digest.contains(':') => format!("{name}@{digest}"),
            tag => format!("{name}:{tag}"),
        };
        let full = normalize(&text).ok_or_else(|| match normalize(name) {
            Some(_) => Failure::bad_request("invalid tag format"),
            None => image_name::invalid(name),
        })?;
        let reference = Reference::parse(&full);
        let last = text.rsplit('/').next().unwrap_or_default();
        Ok(match last.contains([':', '@']) {
            true => Self::One(reference),
            false => Self::All(reference.repository),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_image_or_all_of_a_repository_are_asked_for() {
        for (name, tag, repository, target, path) in [
            ("busybox", "latest", "docker.io/library/busybox", "latest", "library/busybox"),
            ("localhost:5000/a/b", "1", "localhost:5000/a/b", "1", "a/b"),
            ("docker.io/x/y:2", "", "docker.io/x/y", "2", "x/y"),
        ] {
            let Ok(Wanted::One(reference)) = Wanted::parse(name, tag) else { panic!("{name}") };
            assert_eq!((&*reference.repository, &*reference.target), (repository, target));
            assert_eq!((reference.path(), reference.line_id()), (path, target.to_owned()));
        }
        let all = Wanted::parse("localhost:5000/a/b", "").unwrap();
        assert_eq!(all, Wanted::All("localhost:5000/a/b".to_owned()));
        let digest = format!("sha256:{}", "0".repeat(64));
        let Ok(Wanted::One(by_digest)) = Wanted::parse("busybox", &digest) else { panic!() };
        assert_eq!(by_digest.joined(), format!("docker.io/library/busybox@{digest}"));
        assert_eq!(by_digest.line_id(), format!("busybox@{digest}"));
        let refused = |name: &str| Wanted::parse(name, "").unwrap_err().message;
        assert!(refused("UPPER").ends_with("must be lowercase"));
        assert_eq!(refused(""), "invalid reference format");
    }
}
