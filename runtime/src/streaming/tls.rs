//! The certificate of the streaming server, read again when its files change.

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
pub(crate) struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    loaded: Mutex<(Times, Arc<ServerConfig>)>,
}

/// When the two files were written.
type Times = [Option<SystemTime>; 2];

impl Tls {
    /// # Errors
    /// A file that is missing or no PEM, or a key that is not the certificate's.
    pub(crate) fn new(certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        let loaded = Mutex::new((times(certificate, key), load(certificate, key)?));
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), loaded })
    }

    /// With the certificate of now. While its files do not fit together, as in the middle of a renewal, with the one before.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let now = times(&self.certificate, &self.key);
        if loaded.0 != now {
            match load(&self.certificate, &self.key) {
                Ok(config) => *loaded = (now, config),
                Err(error) => tracing::warn!("the certificate before stays in use: {error:#}"),
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
        bail!("streaming.tls.cert {}: no certificate in it", certificate.display());
    }
    let private = PrivateKeyDer::from_pem_file(key).with_context(|| format!("streaming.tls.key {}", key.display()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .context("TLS")?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .with_context(|| format!("streaming.tls: {} and {}", certificate.display(), key.display()))?;
    Ok(Arc::new(config))
}
