//! The certificate of the streaming server, which is read again when its files change.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use anyhow::{Context, bail};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::aws_lc_rs},
};

#[derive(Debug)]
pub(super) struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    loaded: Mutex<(Times, Arc<ServerConfig>)>,
}

/// The times at which the two files were modified.
type Times = [Option<SystemTime>; 2];

impl Tls {
    /// Reads the two PEM files.
    ///
    /// # Errors
    /// A file is missing or not PEM, or the key does not belong to the certificate.
    pub(super) fn new(certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        // The times first: what is written in between is read again by the next connection.
        let times = times(certificate, key);
        let loaded = Mutex::new((times, load(certificate, key)?));
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), loaded })
    }

    /// Accepts connections with the certificate as it is now. In the middle of a renewal, when the
    /// new key does not belong to the old certificate, the previous pair stays in use.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        // Two stat(2) for a connection, instead of a watcher for the life of the daemon.
        let now = times(&self.certificate, &self.key);
        if loaded.0 != now {
            match load(&self.certificate, &self.key) {
                Ok(config) => *loaded = (now, config),
                Err(error) => tracing::warn!("the previous certificate stays in use: {error:#}"),
            }
        }
        TlsAcceptor::from(loaded.1.clone())
    }
}

fn times(certificate: &Path, key: &Path) -> Times {
    [certificate, key].map(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
}

fn load(certificate: &Path, key: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("streaming.tls.cert {}", certificate.display()))?;
    if chain.is_empty() {
        bail!("streaming.tls.cert {}: there is no certificate in it", certificate.display());
    }
    let private = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("streaming.tls.key {}", key.display()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .context("TLS")?
        // The token in the URL is what admits a client.
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .with_context(|| {
            format!("streaming.tls: {} and {}", certificate.display(), key.display())
        })?;
    Ok(Arc::new(config))
}
