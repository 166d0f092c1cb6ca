//! HTTP clients of registries, kept between pulls: with them their connections, and the certificate authorities of the machine, which
//! are hundreds of files.

use std::{
    collections::HashMap,
    env, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use reqwest::{Client, header};

use super::hosts::{Endpoint, Pair};

/// A client that no pull asked for in so long goes, at the next pull.
const KEPT: Duration = Duration::from_secs(600);
/// Of a connection: not so long that something on the way has forgotten it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Nothing at all for that long ends a read; the next attempt goes on where it ended.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Where distributions keep the certificate authorities that they trust.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// What all pulls share.
#[derive(Debug, Default)]
pub(super) struct Clients(Mutex<HashMap<Endpoint, Kept>>);

#[derive(Debug)]
struct Kept {
    client: Client,
    files: Vec<Option<Stamp>>,
    used: Instant,
}

/// Inode, time of change in nanoseconds, length: another one is another content.
type Stamp = (u64, i64, i64, u64);

impl Clients {
    /// The client for an endpoint, made anew when a certificate has changed. Blocks.
    ///
    /// # Errors
    /// A certificate or key that cannot be read; none to trust for https.
    pub(super) fn get(&self, endpoint: &Endpoint) -> anyhow::Result<Client> {
        let files = stamps(endpoint);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, kept| kept.used.elapsed() < KEPT);
        if let Some(kept) = all.get_mut(endpoint).filter(|kept| kept.files == files) {
            kept.used = Instant::now();
            return Ok(kept.client.clone());
        }
        let client = build(endpoint)?;
        all.insert(endpoint.clone(), Kept { client: client.clone(), files, used: Instant::now() });
        Ok(client)
    }
}

/// Of every file that goes into a client.
fn stamps(endpoint: &Endpoint) -> Vec<Option<Stamp>> {
    let given = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let roots = SYSTEM_ROOTS.iter().map(PathBuf::from);
    let pair = endpoint.client.iter().flat_map(|pair| pair.key.iter().chain([&pair.certificate])).cloned();
    let stamp = |path: PathBuf| {
        let found = fs::metadata(path).ok()?;
        Some((found.ino(), found.ctime(), found.ctime_nsec(), found.len()))
    };
    given.chain(roots).chain(pair).chain(endpoint.ca.iter().cloned()).map(stamp).collect()
}

fn build(endpoint: &Endpoint) -> anyhow::Result<Client> {
    let mut headers = header::HeaderMap::new();
    for (name, value) in &endpoint.headers {
        let name = header::HeaderName::from_bytes(name.as_bytes()).with_context(|| format!("header {name:?}"))?;
        headers.append(name, header::HeaderValue::from_str(value).context("header value")?);
    }
    let mut certificates = Vec::new();
    for path in &endpoint.ca {
        let pem = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let certificate = reqwest::Certificate::from_pem(&pem);
        certificates.push(certificate.with_context(|| format!("certificate {}", path.display()))?);
    }
    let mut builder = Client::builder()
        .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .tls_danger_accept_invalid_certs(endpoint.skip_verify);
    if let Some(Pair { certificate, key }) = &endpoint.client {
        let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
        let mut pem = read(certificate)?;
        if let Some(key) = key {
            pem.push(b'\n');
            pem.extend(read(key)?);
        }
        let identity = reqwest::Identity::from_pem(&pem);
        builder = builder.identity(identity.with_context(|| format!("certificate and key {}", certificate.display()))?);
    }
    // A machine without any certificate authority can still speak http, and https where the endpoint says whom to trust.
    let needs_roots = endpoint.base.starts_with("https:") && certificates.is_empty() && !endpoint.skip_verify;
    let builder = match needs_roots || SYSTEM_ROOTS.iter().any(|path| Path::new(path).exists()) {
        true => builder.tls_certs_merge(certificates),
        false => builder.tls_certs_only(certificates),
    };
    builder.build().context("make an http client: is the package ca-certificates installed?")
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
        assert!(clients.get(&endpoint).is_err(), "it is not there");
        fs::write(&ca, CERTIFICATE).unwrap();
        clients.get(&endpoint).unwrap();
        clients.get(&endpoint).unwrap();
        assert_eq!(clients.0.lock().unwrap().len(), 1);
        fs::write(&ca, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(clients.get(&endpoint).is_err(), "it is none any more");
    }
}
