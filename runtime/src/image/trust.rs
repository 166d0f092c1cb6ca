//! Which signatures an image must bear before it becomes one: the policy file of containers-policy.json(5), signatures as cosign keeps
//! them in the image's own repository (sigstore/cosign specs/SIGNATURE_SPEC.md).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, VerificationAlgorithm,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};
use serde::Deserialize;

use super::{
    reference::{Digest, Reference},
    registry::{Registry, Signature},
};
use crate::error::{Error, Kind, Result};

/// What cosign signs with.
const ALGORITHMS: [&dyn VerificationAlgorithm; 5] =
    [&ECDSA_P256_SHA256_ASN1, &ECDSA_P384_SHA256_ASN1, &ECDSA_P384_SHA384_ASN1, &ED25519, &RSA_PKCS1_2048_8192_SHA256];

/// Requirements stay as they are in the file until an image needs them: one kind that berth does not know concerns its own images only.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    default: Vec<serde_json::Value>,
    /// By transport, by scope.
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<serde_json::Value>>>,
}

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

/// What the signature must say that the image is called.
#[derive(Debug, Default, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
enum Identity {
    /// The name asked for; of one asked for by digest, the repository.
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

/// What is signed ("simple signing").
#[derive(Debug, Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Debug, Deserialize)]
struct Critical {
    r#type: String,
    image: SignedImage,
    identity: SignedIdentity,
}

#[derive(Debug, Deserialize)]
struct SignedImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

#[derive(Debug, Deserialize)]
struct SignedIdentity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

/// Checks what `reference` led to against the policy at `path`, read anew for every pull. `digests`: of the index, if there is one, and of
/// the manifest; a signature of either counts.
///
/// # Errors
/// `SignatureValidationFailed` for an image that the policy refuses, `FailedPrecondition` for a policy that cannot be applied.
pub(super) async fn check(path: &Path, registry: &Registry, reference: &Reference, digests: &[&Digest]) -> Result<()> {
    let wrong = |error: anyhow::Error| Error::precondition(format!("signature policy {}: {error:#}", path.display()));
    let requirements = read(path, reference).map_err(wrong)?;
    for requirement in requirements {
        match requirement {
            Requirement::InsecureAcceptAnything {} => {}
            Requirement::Reject {} => return Err(refused(format!("{} rejects it", path.display()))),
            Requirement::SigstoreSigned { key_path, key_paths, key_data, signed_identity } => {
                let files = key_path.iter().chain(&key_paths).map(PathBuf::as_path);
                let keys = keys(files, key_data.as_deref()).map_err(wrong)?;
                let mut reasons = Vec::new();
                for digest in digests {
                    for signature in registry.signatures(digest).await? {
                        reasons.push(verify(&keys, &signed_identity, reference, digest, &signature).err());
                    }
                }
                if !reasons.iter().any(Option::is_none) {
                    let reasons: Vec<String> = reasons.into_iter().flatten().collect();
                    let none = "it bears no signature".to_owned();
                    return Err(refused(if reasons.is_empty() { none } else { reasons.join("; ") }));
                }
            }
        }
    }
    Ok(())
}

fn refused(reason: String) -> Error {
    Error::new(Kind::SignatureValidationFailed, reason)
}

/// All that an image must meet.
fn read(path: &Path, reference: &Reference) -> anyhow::Result<Vec<Requirement>> {
    let policy: Policy = serde_json::from_slice(&fs::read(path)?)?;
    let docker = policy.transports.get("docker");
    let found = scopes(reference).into_iter().find_map(|scope| docker?.get(&scope)).unwrap_or(&policy.default);
    if found.is_empty() {
        bail!("an empty list of requirements for {reference}");
    }
    found.iter().map(|value| Ok(serde_json::from_value(value.clone())?)).collect()
}

/// Where the policy may speak of an image, closest first.
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
    while let Some((_, parent)) = host.split_once('.') {
        scopes.push(format!("*.{parent}"));
        host = parent;
    }
    scopes.push(String::new());
    scopes
}

/// Public keys, each under every algorithm that it serves.
fn keys<'a>(files: impl Iterator<Item = &'a Path>, data: Option<&str>) -> anyhow::Result<Vec<ParsedPublicKey>> {
    let mut pems = Vec::new();
    for file in files {
        pems.push(fs::read(file).with_context(|| format!("read {}", file.display()))?);
    }
    if let Some(data) = data {
        pems.push(STANDARD.decode(data).context("keyData is not base64")?);
    }
    if pems.is_empty() {
        bail!("sigstoreSigned without keyPath, keyPaths or keyData");
    }
    let mut keys = Vec::new();
    for pem in pems {
        let der =
            SubjectPublicKeyInfoDer::from_pem_slice(&pem).map_err(|error| anyhow!("no public key in PEM: {error}"))?;
        let before = keys.len();
        keys.extend(ALGORITHMS.iter().filter_map(|algorithm| ParsedPublicKey::new(*algorithm, &*der).ok()));
        if keys.len() == before {
            bail!("a public key must be of ECDSA (P-256, P-384), Ed25519 or RSA (2048 bits or more)");
        }
    }
    Ok(keys)
}

/// Whether one of `keys` signed that the image `digest` is what was asked for; or why not.
fn verify(
    keys: &[ParsedPublicKey],
    identity: &Identity,
    asked: &Reference,
    digest: &Digest,
    signature: &Signature,
) -> Result<(), String> {
    let bytes = STANDARD.decode(&signature.signature).map_err(|_| "a signature that is not base64".to_owned())?;
    if !keys.iter().any(|key| key.verify_sig(&signature.payload, &bytes).is_ok()) {
        return Err("a signature by another key".to_owned());
    }
    let payload: Payload = serde_json::from_slice(&signature.payload)
        .map_err(|error| format!("a signature of something else than an image: {error}"))?;
    let Critical { r#type, image, identity: signed } = payload.critical;
    if r#type != "cosign container image signature" {
        return Err(format!("a signature of type {type:?}"));
    }
    if image.digest != digest.as_str() {
        return Err(format!("a signature of another image, {}", image.digest));
    }
    let name = Reference::parse(&signed.reference).map_err(|error| error.message)?;
    match identity.fits(asked, &name, &signed.reference).map_err(|error| error.message)? {
        true => Ok(()),
        false => Err(format!("a signature for {:?}", signed.reference)),
    }
}

impl Identity {
    /// `text` is `signed` as it was written: one without a tag is no exact name.
    fn fits(&self, asked: &Reference, signed: &Reference, text: &str) -> Result<bool> {
        let exact = |asked: &Reference| {
            let tagged = text.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
            tagged && (&asked.tag, &asked.name()) == (&signed.tag, &signed.name()) && signed.digest.is_none()
        };
        let repository = |asked: &Reference| asked.name() == signed.name();
        let repo_digest_or_exact = |asked: &Reference| match &asked.digest {
            Some(_) => repository(asked),
            None => exact(asked),
        };
        Ok(match self {
            Self::MatchRepoDigestOrExact => repo_digest_or_exact(asked),
            Self::MatchExact => exact(asked),
            Self::MatchRepository => repository(asked),
            Self::ExactReference { docker_reference } => exact(&Reference::parse(docker_reference)?),
            Self::ExactRepository { docker_repository } => repository(&Reference::parse(docker_repository)?),
            Self::Remap { prefix, signed_prefix } => {
                let name = asked.to_string();
                match name
                    .strip_prefix(prefix.as_str())
                    .filter(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']))
                {
                    Some(rest) => repo_digest_or_exact(&Reference::parse(&format!("{signed_prefix}{rest}"))?),
                    None => repo_digest_or_exact(asked),
                }
            }
        })
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
        let remap =
            |prefix: &str, signed: &str| Identity::Remap { prefix: prefix.into(), signed_prefix: signed.into() };
        let digest = format!("a.io/x@{}", Digest::of([0; 32]));
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
            (Identity::ExactReference { docker_reference: "b.io/y:1".into() }, "a.io/x:1", "b.io/y:1", true),
            (Identity::ExactRepository { docker_repository: "b.io/y".into() }, "a.io/x:1", "b.io/y:3", true),
            (Identity::ExactRepository { docker_repository: "b.io/y".into() }, "a.io/x:1", "a.io/x:1", false),
            (remap("a.io/m", "b.io/n"), "a.io/m/x:1", "b.io/n/x:1", true),
            (remap("a.io/m", "b.io/n"), "a.io/mm/x:1", "a.io/mm/x:1", true),
            (remap("a.io/m", "b.io/n"), "a.io/m/x:1", "a.io/m/x:1", false),
        ] {
            let fits = identity.fits(&Reference::parse(asked).unwrap(), &Reference::parse(signed).unwrap(), signed);
            assert_eq!(fits.unwrap(), expected, "{identity:?} {asked} {signed}");
        }
    }
}
