//! Links to other containers, `NAME[:ALIAS]`.

use std::sync::Arc;

use http::StatusCode;

use super::{object::Container, record::Record};
use crate::{
    engine::Engine,
    http::error::{Failure, Result},
};

/// The name and the alias of a link.
///
/// # Errors
/// 500 for what is no link, in dockerd's words.
pub(crate) fn parse(link: &str) -> Result<(&str, &str)> {
    let refused = |text: String| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, text);
    let mut parts = link.split(':');
    match (parts.next().unwrap_or_default(), parts.next(), parts.next()) {
        ("", None, _) => Err(refused("empty string specified for links".to_owned())),
        // Names begin with a slash where they come from an answer.
        (name, None, _) => Ok((name, name.trim_start_matches('/'))),
        (name, Some(alias), None) => Ok((name, alias.rsplit('/').next().unwrap_or(alias))),
        _ => Err(refused(format!("bad format for links: {link}"))),
    }
}

/// The containers that are linked to, each with its alias.
///
/// # Errors
/// 400 for one that is not there.
pub(crate) fn resolve(engine: &Engine, links: &[String]) -> Result<Vec<(Arc<Container>, String)>> {
    let each = links.iter().map(|link| {
        let (name, alias) = parse(link)?;
        let child = engine.containers.find(name).map_err(|failure| {
            Failure::bad_request(format!("could not get container for {name}: {}", failure.message))
        })?;
        Ok((child, alias.to_owned()))
    });
    each.collect()
}

/// `HostConfig.Links` as inspect shows it: `/child:/parent/alias`.
pub(crate) fn shown(record: &Record) -> Option<Vec<String>> {
    let links = record.host_config.links.as_ref()?;
    let mut shown: Vec<String> = links
        .iter()
        .filter_map(|link| parse(link).ok())
        .map(|(name, alias)| format!("/{}:/{}/{alias}", name.trim_start_matches('/'), record.name))
        .collect();
    shown.sort_unstable();
    (!shown.is_empty()).then_some(shown)
}
