//! The URLs that were handed out and not opened yet.
//!
//! A URL is all that a client needs to run a command in a container, so its token cannot be
//! guessed, works once, and only for a minute.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use berth_base::{
    error::{Error, Kind, Result},
    id,
};

use super::session::Session;

/// How long a URL is good for.
const LIFETIME: Duration = Duration::from_secs(60);
/// A client that asks for sessions and opens none must not fill the memory.
const MAX_PENDING: usize = 1000;
/// 128 random bits.
const TOKEN_BYTES: usize = 16;

#[derive(Debug)]
pub(super) struct Urls {
    /// Scheme and address, without a slash at its end.
    base: String,
    /// By token, with the time at which the URL was handed out.
    pending: Mutex<HashMap<String, (Session, Instant)>>,
}

impl Urls {
    pub(super) fn new(base: String) -> Self {
        Self { base, pending: Mutex::default() }
    }

    /// The URL for a session.
    ///
    /// # Errors
    /// `ResourceExhausted`: too many URLs that nobody has opened.
    pub(super) fn offer(&self, session: Session) -> Result<String> {
        let mut pending = self.pending();
        // Here and in `take` is often enough: the table grows only here.
        forget_expired(&mut pending);
        if pending.len() >= MAX_PENDING {
            return Err(Error::new(
                Kind::ResourceExhausted,
                format!("{MAX_PENDING} streaming URLs have not been opened yet: try again later"),
            ));
        }
        let token = id::random_hex(TOKEN_BYTES);
        let url = format!("{}/{}/{token}", self.base, session.verb());
        pending.insert(token, (session, Instant::now()));
        Ok(url)
    }

    /// The session of a URL, which is good for nothing from then on, even if the verb is wrong.
    pub(super) fn take(&self, verb: &str, token: &str) -> Option<Session> {
        let mut pending = self.pending();
        forget_expired(&mut pending);
        // Removed before anything else can fail, so that a token works once at most.
        pending.remove(token).map(|(session, _)| session).filter(|session| session.verb() == verb)
    }

    pub(super) fn count(&self) -> usize {
        self.pending().len()
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<String, (Session, Instant)>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget_expired(pending: &mut HashMap<String, (Session, Instant)>) {
    pending.retain(|_, (_, since)| since.elapsed() < LIFETIME);
}
