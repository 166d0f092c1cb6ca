//! The policy file of containers-policy.json(5): which images may be pulled, and whose signatures
//! they must have.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use berth_base::error::{Error, Kind, Result};
use serde::Deserialize;

use super::cosign::{self, Keys};
use crate::{digest::Digest, reference::Reference, registry::Repository};

/// Requirements are parsed only when an image needs them, so that an unsupported kind affects only
/// the images that it is for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    default: Vec<serde_json::Value>,
    /// By transport, then by scope. Images in registries have the transport `docker`.
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<serde_json::Value>>>,
}

/// Unknown fields are refused, because ignoring one could make a requirement less strict.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
enum Requirement {
    InsecureAcceptAnything {},
    Reject {},
    #[serde(rename_all = "camelCase")]
    SigstoreSigned {
        #[serde(default)]
        key_path: Option<PathBuf>,
        #[serde(default)]
        key_paths: Vec<PathBuf>,
        /// base64 of PEM.
        #[serde(default)]
        key_data: Option<String>,
        #[serde(default)]
        signed_identity: Identity,
    },
}

/// Which reference the signature must be for.
#[derive(Debug, Default, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
enum Identity {
    /// The reference that is pulled. If that is by digest, only its repository must match.
    #[default]
    MatchRepoDigestOrExact,
    MatchExact,
    MatchRepository,
    #[serde(rename_all = "camelCase")]
    ExactReference {
        docker_reference: String,
    },
    #[serde(rename_all = "camelCase")]
    ExactRepository {
        docker_repository: String,
    },
    #[serde(rename = "remapIdentity", rename_all = "camelCase")]
    Remap {
        prefix: String,
        signed_prefix: String,
    },
}

/// Checks an image against the policy at `path`, which is read again for every pull. `digests` are
/// those of the index, if there is one, and of the manifest. A signature of either is sufficient.
///
/// # Errors
/// `SignatureValidationFailed` if the policy refuses the image; `FailedPrecondition` if the policy
/// cannot be read or applied.
pub(crate) async fn check(
    path: &Path,
    repository: &Repository,
    reference: &Reference,
    digests: &[Digest],
) -> Result<()> {
    let wrong = |error: anyhow::Error| {
        Error::precondition(format!("signature policy {}: {error:#}", path.display()))
    };
    let requirements = read(path, reference).await.map_err(wrong)?;
    // Every requirement must be met.
    for requirement in requirements {
        match requirement {
            Requirement::InsecureAcceptAnything {} => {}
            Requirement::Reject {} => {
                return Err(refused(format!("{} rejects it", path.display())));
            }
            Requirement::SigstoreSigned { key_path, key_paths, key_data, signed_identity } => {
                let files: Vec<PathBuf> = key_path.into_iter().chain(key_paths).collect();
                let keys = read_keys(&files, key_data.as_deref()).await.map_err(wrong)?;
                check_signatures(repository, reference, digests, &keys, &signed_identity).await?;
            }
        }
    }
    Ok(())
}

fn refused(reason: String) -> Error {
    Error::new(Kind::SignatureValidationFailed, reason)
}

/// The requirements for an image.
async fn read(path: &Path, reference: &Reference) -> anyhow::Result<Vec<Requirement>> {
    let policy: Policy = serde_json::from_slice(&tokio::fs::read(path).await?)?;
    let requirements = requirements(&policy, reference);
    // An empty list would accept everything. The policy has `insecureAcceptAnything` for that.
    if requirements.is_empty() {
        bail!("an empty list of requirements for {reference}");
    }
    // Only these are parsed, so a mistake in the requirements of other images does not matter.
    requirements.iter().map(|value| Ok(serde_json::from_value(value.clone())?)).collect()
}

/// The requirements of the most specific scope. Those of other scopes do not apply.
fn requirements<'a>(policy: &'a Policy, reference: &Reference) -> &'a [serde_json::Value] {
    let docker = policy.transports.get("docker");
    scopes(reference).into_iter().find_map(|scope| docker?.get(&scope)).unwrap_or(&policy.default)
}

/// The scopes that include an image, the most specific first.
fn scopes(reference: &Reference) -> Vec<String> {
    let mut scopes = Vec::new();
    scopes.extend(reference.digest.as_ref().map(|digest| reference.repo_digest(digest)));
    scopes.extend(reference.repo_tag());
    let name = reference.name();
    let mut rest = name.as_str();
    loop {
        scopes.push(rest.to_owned());
        match rest.rsplit_once('/') {
            Some((parent, _)) => rest = parent,
            None => break,
        }
    }
    let mut host = reference.host.as_str();
    // Wildcards for subdomains are less specific than the host itself.
    while let Some((_, parent)) = host.split_once('.') {
        scopes.push(format!("*.{parent}"));
        host = parent;
    }
    // The scope of all images of the transport.
    scopes.push(String::new());
    scopes
}

async fn read_keys(files: &[PathBuf], data: Option<&str>) -> anyhow::Result<Keys> {
    let mut pems = Vec::new();
    for file in files {
        pems.push(tokio::fs::read(file).await.with_context(|| format!("read {}", file.display()))?);
    }
    if let Some(data) = data {
        pems.push(STANDARD.decode(data).context("keyData is not base64")?);
    }
    if pems.is_empty() {
        bail!("sigstoreSigned without keyPath, keyPaths or keyData");
    }
    Keys::parse(&pems)
}

/// Looks for one valid signature. The error gives the reason against each that there is.
async fn check_signatures(
    repository: &Repository,
    reference: &Reference,
    digests: &[Digest],
    keys: &Keys,
    identity: &Identity,
) -> Result<()> {
    let mut reasons = Vec::new();
    for digest in digests {
        for signature in cosign::signatures(repository, digest).await? {
            let verified = signature
                .verify(keys, digest)
                .and_then(|signed| identity.check(reference, &signed));
            match verified {
                // One is enough. The others may have been made with other people's keys.
                Ok(()) => return Ok(()),
                Err(reason) => reasons.push(reason),
            }
        }
    }
    Err(refused(match reasons.is_empty() {
        true => "it has no signature".to_owned(),
        false => reasons.join("; "),
    }))
}

impl Identity {
    fn check(&self, asked: &Reference, signed: &str) -> Result<(), String> {
        match self.is_satisfied(asked, signed).map_err(|error| error.message)? {
            true => Ok(()),
            false => Err(format!("a signature for {signed:?}")),
        }
    }

    /// Whether an image that was signed as `signed` may be pulled as `asked`.
    fn is_satisfied(&self, asked: &Reference, signed: &str) -> Result<bool> {
        let name = Reference::parse(signed)?;
        Ok(match self {
            Self::MatchRepoDigestOrExact => is_repo_digest_or_exact(asked, &name, signed),
            Self::MatchExact => is_exact(asked, &name, signed),
            Self::MatchRepository => asked.name() == name.name(),
            Self::ExactReference { docker_reference } => {
                is_exact(&Reference::parse(docker_reference)?, &name, signed)
            }
            Self::ExactRepository { docker_repository } => {
                Reference::parse(docker_repository)?.name() == name.name()
            }
            Self::Remap { prefix, signed_prefix } => {
                let asked = remap(asked, prefix, signed_prefix)?;
                is_repo_digest_or_exact(&asked, &name, signed)
            }
        })
    }
}

/// Whether both are the same name with the same tag. `text` is `signed` before it was parsed:
/// parsing adds the tag `latest` to a name without one, but nobody signed that tag.
fn is_exact(asked: &Reference, signed: &Reference, text: &str) -> bool {
    let has_tag = text.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
    has_tag && asked.tag == signed.tag && asked.name() == signed.name() && signed.digest.is_none()
}

fn is_repo_digest_or_exact(asked: &Reference, signed: &Reference, text: &str) -> bool {
    match &asked.digest {
        Some(_) => asked.name() == signed.name(),
        None => is_exact(asked, signed, text),
    }
}

/// The name under which a mirror's image was signed. The prefix must end where a component ends, so
/// that `a.io/m` does not apply to `a.io/mm`.
fn remap(asked: &Reference, prefix: &str, signed_prefix: &str) -> Result<Reference> {
    let name = asked.to_string();
    let rest = name
        .strip_prefix(prefix)
        .filter(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']));
    match rest {
        Some(rest) => Reference::parse(&format!("{signed_prefix}{rest}")),
        None => Ok(asked.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_scope_counts() {
        let reference = Reference::parse("a.example.com:5000/team/app:1").unwrap();
        assert_eq!(
            scopes(&reference),
            [
                "a.example.com:5000/team/app:1",
                "a.example.com:5000/team/app",
                "a.example.com:5000/team",
                "a.example.com:5000",
                "*.example.com:5000",
                "*.com:5000",
                "",
            ]
        );
    }

    #[test]
    fn identities_are_compared_as_the_policy_says() {
        let remap = |prefix: &str, signed: &str| Identity::Remap {
            prefix: prefix.into(),
            signed_prefix: signed.into(),
        };
        let digest = format!("a.io/x@{}", Digest::sha256(""));
        for (identity, asked, signed, expected) in [
            (Identity::MatchRepoDigestOrExact, "a.io/x:1", "a.io/x:1", true),
            (Identity::MatchRepoDigestOrExact, "a.io/x:1", "a.io/x:2", false),
            (Identity::MatchRepoDigestOrExact, "a.io/x:latest", "a.io/x", false),
            (Identity::MatchRepoDigestOrExact, &digest, "a.io/x:2", true),
            (Identity::MatchRepoDigestOrExact, &digest, "a.io/y:2", false),
            (Identity::MatchExact, &digest, "a.io/x:2", false),
            (Identity::MatchRepository, "a.io/x:1", "a.io/x", true),
            (Identity::MatchRepository, "a.io/x:1", "a.io/xx", false),
            (Identity::MatchRepository, "busybox", "docker.io/library/busybox", true),
            (
                Identity::ExactReference { docker_reference: "b.io/y:1".into() },
                "a.io/x:1",
                "b.io/y:1",
                true,
            ),
            (
                Identity::ExactRepository { docker_repository: "b.io/y".into() },
                "a.io/x:1",
                "b.io/y:3",
                true,
            ),
            (
                Identity::ExactRepository { docker_repository: "b.io/y".into() },
                "a.io/x:1",
                "a.io/x:1",
                false,
            ),
            (remap("a.io/m", "b.io/n"), "a.io/m/x:1", "b.io/n/x:1", true),
            (remap("a.io/m", "b.io/n"), "a.io/mm/x:1", "a.io/mm/x:1", true),
            (remap("a.io/m", "b.io/n"), "a.io/m/x:1", "a.io/m/x:1", false),
        ] {
            let satisfied = identity.is_satisfied(&Reference::parse(asked).unwrap(), signed);
            assert_eq!(satisfied.unwrap(), expected, "{identity:?} {asked} {signed}");
        }
    }
}
