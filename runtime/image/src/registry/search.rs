//! Searches the index of a registry, by docker's first protocol, which Docker Hub still has for that.

use std::sync::Arc;

use berth_base::error::{Error, Kind, Result};
use reqwest::{Method, StatusCode};

use super::{
    client::{Clients, Purpose},
    hosts,
    response::read_document,
    server::{Access, Request, Server},
};
use crate::{credentials::Credentials, unblock::unblock};

/// What the index of `host` has for `term`: a document with `limit` results at most.
///
/// # Errors
/// `RegistryUnavailable` if there is no such index, `Unauthenticated`, or `Internal` for another
/// status than 200.
pub(crate) async fn search(
    clients: Arc<Clients>,
    host: &str,
    term: &str,
    limit: u32,
    credentials: &Credentials,
) -> Result<Vec<u8>> {
    let endpoint = hosts::index_endpoint(host)?;
    let server = unblock(move || Ok(Server::new(endpoint, &clients, Purpose::Pull)?)).await?;
    let mut url = server.url("", "search")?;
    url.query_pairs_mut().append_pair("q", term).append_pair("n", &limit.to_string());
    let request = Request::new(Method::GET, String::new());
    let mut response = server.ask(&request, &url).await?;
    if response.status() == StatusCode::UNAUTHORIZED && credentials.are_secret() {
        server.authorize(credentials, Access::Pull(""), &response).await?;
        response = server.ask(&request, &url).await?;
    }
    match response.status() {
        StatusCode::OK => read_document(response).await,
        status => {
            let message = format!("Unexpected status code {}", status.as_u16());
            Err(Error::new(Kind::Internal, message))
        }
    }
}
