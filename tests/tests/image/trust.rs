//! Signatures: an image is pulled if the policy is satisfied, and is refused otherwise.

use std::{fs, path::PathBuf, process::Command};

use base64::{Engine, engine::general_purpose::STANDARD};
use berth_tests::{Cri, Daemon, DockerRegistry, Image, Layer, Machine, digest};
use serde_json::{Value, json};
use tonic::Code;

/// Makes a key pair; returns the public key.
fn key(machine: &Machine, name: &str, algorithm: &[&str]) -> PathBuf {
    let private = machine.path(name);
    let public = machine.path(&format!("{name}.pub"));
    for arguments in [
        [&["genpkey", "-out", private.to_str().unwrap()], algorithm].concat(),
        vec!["pkey", "-in", private.to_str().unwrap(), "-pubout", "-out", public.to_str().unwrap()],
    ] {
        let made = Command::new("openssl").args(arguments).output().expect("openssl is installed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    public
}

/// The signature of `payload` by `key`.
fn sign(machine: &Machine, key: &str, payload: &[u8]) -> Vec<u8> {
    let input = machine.path("payload");
    let output = machine.path("signature");
    fs::write(&input, payload).unwrap();
    let [private, input, output_path] =
        [&machine.path(key), &input, &output].map(|path| path.to_str().unwrap().to_owned());
    let arguments = match key {
        "ed25519" => vec![
            "pkeyutl",
            "-sign",
            "-rawin",
            "-inkey",
            &private,
            "-in",
            &input,
            "-out",
            &output_path,
        ],
        _ => vec!["dgst", "-sha256", "-sign", &private, "-out", &output_path, &input],
    };
    let signed = Command::new("openssl").args(arguments).output().unwrap();
    assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
    fs::read(output).unwrap()
}

fn payload(name: &str, digest: &str) -> Vec<u8> {
    let critical = json!({
        "identity": { "docker-reference": name },
        "image": { "docker-manifest-digest": digest },
        "type": "cosign container image signature",
    });
    json!({ "critical": critical, "optional": null }).to_string().into_bytes()
}

/// The artifact with signatures that cosign puts beside an image.
fn signatures(signed: &[(Vec<u8>, Vec<u8>)]) -> Image {
    let config = b"{}".to_vec();
    let layers: Vec<Value> = signed
        .iter()
        .map(|(payload, signature)| {
            json!({
                "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
                "digest": digest(payload),
                "size": payload.len(),
                "annotations": { "dev.cosignproject.cosign/signature": STANDARD.encode(signature) },
            })
        })
        .collect();
    let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type, "layers": layers,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest(&config), "size": config.len() },
    });
    let blobs = signed.iter().map(|(payload, _)| payload.clone()).chain([config.clone()]).collect();
    Image { blobs, manifest: manifest.to_string().into_bytes(), media_type, id: digest(&config) }
}

/// A registry of signed images, and the policy of the daemon.
struct Setup {
    machine: Machine,
    _daemon: Daemon,
    cri: Cri,
    registry: DockerRegistry,
    policy: PathBuf,
}

/// A signature: the key, and the name and the digest that the payload has.
type Signed<'a> = (&'a str, &'a str, &'a str);

impl Setup {
    async fn new() -> Self {
        let mut machine = Machine::new();
        let policy = machine.path("policy.json");
        machine.config = format!("signature_policy = {policy:?}");
        let daemon = machine.start().await;
        let cri = daemon.cri();
        let registry = DockerRegistry::start(&machine).await;
        Self { machine, _daemon: daemon, cri, registry, policy }
    }

    /// The image in `repository`, whose content is that name, and its digest.
    fn image(&self, repository: &str) -> (Image, String) {
        let image = Image::simple(Layer::new().file("word", repository.as_bytes()), &["x"]);
        let digest = digest(&image.manifest);
        (image, digest)
    }

    /// Uploads the image with these signatures; returns its name.
    fn push(&self, repository: &str, signed: &[Signed<'_>]) -> String {
        let (image, digest) = self.image(repository);
        let name = self.registry.push(&self.machine, repository, "1", &image);
        let signed: Vec<(Vec<u8>, Vec<u8>)> = signed
            .iter()
            .map(|(key, name, digest)| {
                let payload = payload(&format!("{}/{name}", self.registry.host), digest);
                let signature = sign(&self.machine, key, &payload);
                (payload, signature)
            })
            .collect();
        if !signed.is_empty() {
            let tag = digest.replace(':', "-") + ".sig";
            self.registry.push(&self.machine, repository, &tag, &signatures(&signed));
        }
        name
    }

    /// As `push`, with one signature by `key` for `name`.
    fn push_signed(&self, repository: &str, key: &str, name: &str) -> String {
        let (_, digest) = self.image(repository);
        self.push(repository, &[(key, name, &digest)])
    }

    /// Writes the policy: requirements by scope (without the registry's host), and the default.
    fn write(&self, scopes: &[(&str, &Value)], default: &Value) {
        let scope = |scope: &str| format!("{}{scope}", self.registry.host);
        let docker: serde_json::Map<_, _> =
            scopes.iter().map(|(name, value)| (scope(name), (*value).clone())).collect();
        fs::write(
            &self.policy,
            json!({ "default": default, "transports": { "docker": docker } }).to_string(),
        )
        .unwrap();
    }

    async fn assert_refused(&self, name: &str, why: &str) {
        let error = self.cri.pull(name).await.unwrap_err();
        let told = error.message().starts_with("SignatureValidationFailed: ")
            && error.message().contains(why);
        assert!(told && error.code() == Code::Unknown, "{name}, {why:?}: {error}");
        assert!(self.cri.image_status(name).await.unwrap().is_none());
    }
}

const P256: [&str; 4] = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];

fn accept() -> Value {
    json!([{ "type": "insecureAcceptAnything" }])
}

fn signed(mut requirement: Value) -> Value {
    requirement["type"] = "sigstoreSigned".into();
    json!([requirement])
}

#[tokio::test]
async fn an_image_is_pulled_when_it_bears_the_signatures_that_the_policy_wants() {
    let setup = Setup::new().await;
    let machine = &setup.machine;
    let cri = &setup.cri;
    let public = key(machine, "ec", &P256);
    let other = key(machine, "other", &P256);
    let good = setup.push_signed("team/good", "ec", "team/good");
    let none = setup.push("team/none", &[]);
    let foreign = setup.push_signed("team/foreign", "other", "team/foreign");
    let moved = setup.push_signed("team/moved", "ec", "team/good");
    let replayed = setup.push("team/replayed", &[("ec", "team/replayed", &digest(b"another"))]);
    let (_, digest) = setup.image("team/second");
    let second = setup
        .push("team/second", &[("other", "team/second", &digest), ("ec", "team/second", &digest)]);
    let free = setup.push("free/image", &[]);
    let elsewhere = setup.push_signed("elsewhere", "ec", "elsewhere");

    // A policy file that is configured and missing refuses everything.
    let error = cri.pull(&good).await.unwrap_err();
    assert!(
        error.code() == Code::FailedPrecondition && error.message().contains("policy.json"),
        "{error}"
    );
    let repository = json!({ "type": "matchRepository" });
    let team = signed(json!({ "keyPath": public, "signedIdentity": repository }));
    setup.write(&[("/team", &team), ("/free", &accept())], &json!([{ "type": "reject" }]));
    let by_digest = good.replace(":1", "") + "@" + &setup.image("team/good").1;
    for name in [&good, &by_digest, &second, &free] {
        cri.pull(name).await.unwrap();
    }
    for (name, why) in [
        (&none, "no signature"),
        (&foreign, "another key"),
        (&moved, "team/good"),
        (&replayed, "of another image"),
        (&elsewhere, "rejects it"),
    ] {
        setup.assert_refused(name, why).await;
    }
    // Any of the keys is enough. The payload must have the exact name unless the policy says
    // otherwise.
    setup.write(&[("", &signed(json!({ "keyPaths": [other, public] })))], &accept());
    setup.assert_refused(&foreign, "a signature for").await;
}

#[tokio::test]
async fn keys_of_every_kind_count() {
    let setup = Setup::new().await;
    for (kind, algorithm) in [
        ("p256", &P256[..]),
        ("p384", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"]),
        ("rsa", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
        ("ed25519", &["-algorithm", "ED25519"]),
    ] {
        let public = key(&setup.machine, kind, algorithm);
        let name = setup.push_signed(kind, kind, &format!("{kind}:1"));
        let data = STANDARD.encode(fs::read(public).unwrap());
        setup.write(&[("", &signed(json!({ "keyData": data })))], &accept());
        setup.cri.pull(&name).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
    }
}

#[tokio::test]
async fn a_policy_that_cannot_be_applied_lets_nothing_in_but_what_it_does_not_concern() {
    let setup = Setup::new().await;
    let public = key(&setup.machine, "ec", &P256);
    let odd = key(
        &setup.machine,
        "odd",
        &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"],
    );
    let good = setup.push_signed("team/good", "ec", "team/good:1");
    let free = setup.push("free/image", &[]);
    for (requirements, why) in [
        (json!([]), "empty list"),
        (json!([{ "type": "signedBy", "keyType": "GPGKeys" }]), "signedBy"),
        (signed(json!({})), "without keyPath"),
        (signed(json!({ "keyPath": "/nowhere" })), "/nowhere"),
        (signed(json!({ "keyPath": setup.machine.path("ec") })), "PEM"),
        (signed(json!({ "keyPath": odd })), "P-256"),
        (signed(json!({ "keyData": "%" })), "base64"),
        (signed(json!({ "keyPath": public, "fulcio": {} })), "fulcio"),
    ] {
        setup.write(&[("/team", &requirements)], &accept());
        let error = setup.cri.pull(&good).await.unwrap_err();
        assert!(
            error.code() == Code::FailedPrecondition && error.message().contains(why),
            "{why}: {error}"
        );
        setup.cri.pull(&free).await.unwrap();
    }
    fs::write(&setup.policy, "{").unwrap();
    assert_eq!(setup.cri.pull(&free).await.unwrap_err().code(), Code::FailedPrecondition);
}
