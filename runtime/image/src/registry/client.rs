//! HTTP clients, kept between pulls. Keeping them keeps their connections, and the machine's
//! certificate authorities, which are hundreds of files to read and parse.

use std::{
    collections::HashMap,
    env, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use reqwest::{Client, redirect::Policy};

use super::hosts::{ClientCertificate, Endpoint};

/// A client that has not been used for this long is dropped at the next pull.
const KEPT: Duration = Duration::from_secs(600);
/// For idle connections. Shorter than the memory of firewalls and load balancers, so that no
/// request is sent on a connection that one of them has already forgotten.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A read fails if nothing at all arrives for this long. The download then resumes where it was.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Where distributions keep the certificate authorities that they trust.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// The clients, by endpoint and by what they are for. All pulls share them, and all pushes.
#[derive(Debug, Default)]
pub(crate) struct Clients(Mutex<HashMap<(Endpoint, Purpose), CachedClient>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Purpose {
    Pull,
    /// Nothing is read while a layer is sent, which may take hours.
    Push,
}

#[derive(Debug)]
struct CachedClient {
    client: Client,
    /// The state of the files that the client was made from.
    stamps: Vec<Option<Stamp>>,
    used: Instant,
}

/// Identifies the content of a file without reading it.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    /// Time of the last change, in seconds and nanoseconds. Unlike mtime, programs cannot set it.
    ctime: (i64, i64),
    length: u64,
}

impl Clients {
    /// The client for an endpoint. It is made again if one of its files has changed. Blocks.
    ///
    /// # Errors
    /// A certificate or key cannot be read, or https has no certificate authority to trust.
    pub(super) fn get(&self, endpoint: &Endpoint, purpose: Purpose) -> anyhow::Result<Client> {
        let stamps = stamps(endpoint);
        // The lock is held while a client is built. If many pulls begin at once, only one of them
        // should read all of the machine's authorities.
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|_, cached| cached.used.elapsed() < KEPT);
        let key = (endpoint.clone(), purpose);
        if let Some(cached) = clients.get_mut(&key).filter(|cached| cached.stamps == stamps) {
            cached.used = Instant::now();
            return Ok(cached.client.clone());
        }
        let client = build(endpoint, purpose)?;
        let cached = CachedClient { client: client.clone(), stamps, used: Instant::now() };
        clients.insert(key, cached);
        Ok(client)
    }
}

/// The stamps of all files that go into a client; `None` for a missing file, so that creating it is
/// a change as well.
fn stamps(endpoint: &Endpoint) -> Vec<Option<Stamp>> {
    // OpenSSL's variables, which the TLS library obeys too when it looks for authorities.
    let from_environment =
        ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let mut files: Vec<PathBuf> = from_environment.collect();
    files.extend(SYSTEM_ROOTS.iter().map(PathBuf::from));
    if let Some(ClientCertificate { certificate, key }) = &endpoint.client {
        files.extend(key.iter().chain([certificate]).cloned());
    }
    files.extend(endpoint.ca.iter().cloned());
    files.iter().map(|path| stamp(path)).collect()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        inode: metadata.ino(),
        ctime: (metadata.ctime(), metadata.ctime_nsec()),
        length: metadata.len(),
    })
}

fn build(endpoint: &Endpoint, purpose: Purpose) -> anyhow::Result<Client> {
    let mut authorities = Vec::new();
    for path in &endpoint.ca {
        let certificate = reqwest::Certificate::from_pem(&read(path)?);
        authorities.push(certificate.with_context(|| format!("certificate {}", path.display()))?);
    }
    let mut builder = Client::builder()
        .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
        // `transport` follows redirects itself, because it knows what each origin may see.
        .redirect(Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .tls_danger_accept_invalid_certs(endpoint.skip_verify);
    if purpose == Purpose::Pull {
        builder = builder.read_timeout(READ_TIMEOUT);
    }
    if let Some(certificate) = &endpoint.client {
        builder = builder.identity(identity(certificate)?);
    }
    // If a machine has no certificate authorities, reqwest refuses to build a client that trusts
    // them. It still works for http, and for https if the endpoint has authorities of its own.
    let needs_roots =
        endpoint.base.starts_with("https:") && authorities.is_empty() && !endpoint.skip_verify;
    let has_roots = SYSTEM_ROOTS.iter().any(|path| Path::new(path).exists());
    let builder = match needs_roots || has_roots {
        true => builder.tls_certs_merge(authorities),
        false => builder.tls_certs_only(authorities),
    };
    builder.build().context("make an http client: is the package ca-certificates installed?")
}

/// The node's certificate and key.
fn identity(client: &ClientCertificate) -> anyhow::Result<reqwest::Identity> {
    let ClientCertificate { certificate, key } = client;
    let mut pem = read(certificate)?;
    if let Some(key) = key {
        // The certificate's last line may lack its newline.
        pem.push(b'\n');
        pem.extend(read(key)?);
    }
    reqwest::Identity::from_pem(&pem)
        .with_context(|| format!("certificate and key {}", certificate.display()))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBbTCCAROgAwIBAgIUXw9KIsaRKCt98NY712XUtxToccQwCgYIKoZIzj0EAwIw
DDEKMAgGA1UEAwwBeDAeFw0yNjExMjIwMjQ2NTVaFw0zNjExMTkwMjQ2NTVaMAwx
CjAIBgNVBAMMAXgwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARiJNc/kopuUIvO
E7R2MVcsznXFySIi8Mk1DGS96Gj5BYkeoQIaea0TlRh3g932gGxIFF1Ao/B98xDo
56QA1p+lo1MwUTAdBgNVHQ4EFgQUwmTq/sJ3hiEFTjVtLap1QEk70K4wHwYDVR0j
BBgwFoAUwmTq/sJ3hiEFTjVtLap1QEk70K4wDwYDVR0TAQH/BAUwAwEB/zAKBggq
hkjOPQQDAgNIADBFAiEAw9AjmvLRYUGR27zt0sxuKuOLYppqjMK8JwYRljdUmicC
IAJzYUgBISJSeBR87QHoY7xt7+62DVEFqZzFHblbMqja
-----END CERTIFICATE-----
";

    #[test]
    fn a_certificate_that_changes_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca.crt");
        let mut endpoint = Endpoint::new("https://r.example", "r.example", false).unwrap();
        endpoint.ca = vec![ca.clone()];
        let clients = Clients::default();
        assert!(clients.get(&endpoint, Purpose::Pull).is_err(), "it is not there");
        fs::write(&ca, CERTIFICATE).unwrap();
        clients.get(&endpoint, Purpose::Pull).unwrap();
        clients.get(&endpoint, Purpose::Pull).unwrap();
        assert_eq!(clients.0.lock().unwrap().len(), 1);
        fs::write(&ca, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(clients.get(&endpoint, Purpose::Pull).is_err(), "it is none any more");
    }
}
