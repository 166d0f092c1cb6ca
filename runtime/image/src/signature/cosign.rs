//! Signatures by cosign, which are stored as an image beside the signed one, in the same repository
//! (sigstore/cosign, specs/SIGNATURE_SPEC.md).

use anyhow::{anyhow, bail};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, VerificationAlgorithm,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use berth_base::error::{Error, Kind, Result};
use oci_spec::image::ImageManifest;
use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};
use serde::Deserialize;

use crate::{digest::Digest, registry::Repository};

/// The algorithms that cosign signs with.
const ALGORITHMS: [&dyn VerificationAlgorithm; 5] = [
    &ECDSA_P256_SHA256_ASN1,
    &ECDSA_P384_SHA256_ASN1,
    &ECDSA_P384_SHA384_ASN1,
    &ED25519,
    &RSA_PKCS1_2048_8192_SHA256,
];

/// The number of signatures of an image that are read. Without a limit, whoever can push to the
/// repository could make every pull fetch any number of them.
const MAX_SIGNATURES: usize = 64;
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";

/// A signature that has not been verified yet.
#[derive(Debug)]
pub(super) struct Signature {
    /// What is signed, as JSON.
    payload: Vec<u8>,
    /// In base64.
    signature: String,
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

/// Public keys. A signature by any of them is accepted.
#[derive(Debug)]
pub(super) struct Keys(Vec<ParsedPublicKey>);

impl Keys {
    /// Parses keys in PEM.
    ///
    /// # Errors
    /// One is not a public key, or not of a kind that cosign uses.
    pub(super) fn parse(pems: &[Vec<u8>]) -> anyhow::Result<Self> {
        let mut keys = Vec::new();
        for pem in pems {
            let der = SubjectPublicKeyInfoDer::from_pem_slice(pem)
                .map_err(|error| anyhow!("no public key in PEM: {error}"))?;
            let before = keys.len();
            // A key does not say which hash function to use with it, so it is tried with every
            // algorithm that accepts it.
            keys.extend(
                ALGORITHMS
                    .iter()
                    .filter_map(|algorithm| ParsedPublicKey::new(*algorithm, &*der).ok()),
            );
            if keys.len() == before {
                bail!(
                    "a public key must be of ECDSA (P-256, P-384), Ed25519 or RSA (2048 bits or \
                    more)"
                );
            }
        }
        Ok(Self(keys))
    }

    fn verify(&self, payload: &[u8], signature: &[u8]) -> bool {
        self.0.iter().any(|key| key.verify_sig(payload, signature).is_ok())
    }
}

/// Fetches the signatures of the manifest or index `digest`. There may be none.
///
/// # Errors
/// As for `Repository::manifest`; `FailedPrecondition` if the document is not a list of signatures.
pub(super) async fn signatures(repository: &Repository, digest: &Digest) -> Result<Vec<Signature>> {
    // The specification derives the tag from the digest of what is signed.
    let bytes = match repository.manifest(&format!("sha256-{}.sig", digest.hex())).await {
        Ok((_, bytes)) => bytes,
        Err(error) if error.kind == Kind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let manifest: ImageManifest = serde_json::from_slice(&bytes)
        .map_err(|error| Error::precondition(format!("signatures of {digest}: {error}")))?;
    let mut signatures = Vec::new();
    for layer in manifest.layers().iter().take(MAX_SIGNATURES) {
        let annotations = layer.annotations().as_ref();
        let Some(signature) = annotations.and_then(|all| all.get(SIGNATURE_ANNOTATION)) else {
            continue;
        };
        if layer.media_type().to_string() != SIMPLE_SIGNING {
            continue;
        }
        let payload = repository.document(&Digest::parse(layer.digest().as_ref())?).await?;
        signatures.push(Signature { payload, signature: signature.clone() });
    }
    Ok(signatures)
}

impl Signature {
    /// Verifies that one of `keys` signed the image `digest`. Returns the reference that was
    /// signed.
    ///
    /// # Errors
    /// The reason why it is not a valid signature of the image.
    pub(super) fn verify(&self, keys: &Keys, digest: &Digest) -> Result<String, String> {
        let bytes = STANDARD
            .decode(&self.signature)
            .map_err(|_| "a signature that is not base64".to_owned())?;
        // Verified before the payload is parsed, so that unsigned data decides nothing.
        if !keys.verify(&self.payload, &bytes) {
            return Err("a signature by another key".to_owned());
        }
        let payload: Payload = serde_json::from_slice(&self.payload)
            .map_err(|error| format!("a signature of something else than an image: {error}"))?;
        let Critical { r#type, image, identity } = payload.critical;
        if r#type != "cosign container image signature" {
            return Err(format!("a signature of type {type:?}"));
        }
        // A valid signature of another image may have been copied to this image's tag.
        if image.digest != digest.as_str() {
            return Err(format!("a signature of another image, {}", image.digest));
        }
        Ok(identity.reference)
    }
}
