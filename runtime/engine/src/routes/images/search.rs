//! `GET /images/search`: the index of a registry is asked, that of Docker Hub by default.

use serde::{Deserialize, Serialize};

use crate::{
    api::registry::auth,
    filters::Filters,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
    },
    routes::Call,
};

const DEFAULT_LIMIT: u32 = 25;
const MAX_LIMIT: u32 = 100;

/// What an index answers.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Found {
    results: Vec<Repository>,
}

/// A repository that was found, as the index and the engine show it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
struct Repository {
    star_count: i64,
    is_official: bool,
    name: String,
    is_automated: bool,
    description: String,
}

/// # Errors
/// 400 for a limit or filters that are none, 500 if the index does not answer.
pub(in crate::routes) async fn search(call: Call) -> Result<Answer> {
    let limit = limit(call.query.get("limit"))?;
    let filters = Filters::parse(call.query.get("filters"))?;
    filters.accept(&["is-automated", "is-official", "stars"])?;
    let automated = filters.flag("is-automated")?;
    let official = filters.flag("is-official")?;
    let stars = stars(&filters)?;
    let auth = auth(call.request.headers());
    let images = &call.engine.node.host.images;
    let document = images.search(call.query.get("term"), limit, auth).await?;
    let found: Found = serde_json::from_slice(&document)
        .map_err(|error| anyhow::Error::new(error).context("the answer of the index"))?;
    let mut results = found.results;
    results.retain(|repository| {
        automated.is_none_or(|wanted| repository.is_automated == wanted)
            && official.is_none_or(|wanted| repository.is_official == wanted)
            && repository.star_count >= stars
    });
    Ok(body::ok(&results))
}

fn limit(text: &str) -> Result<u32> {
    let number = match text {
        "" => 0,
        text => text.parse::<i64>().map_err(|_| {
            Failure::bad_request(format!(
                "invalid limit specified: strconv.Atoi: parsing {text:?}: invalid syntax"
            ))
        })?,
    };
    match u32::try_from(number) {
        Ok(0) => Ok(DEFAULT_LIMIT),
        Ok(limit @ 1..=MAX_LIMIT) => Ok(limit),
        _ => Err(Failure::bad_request(format!(
            "limit {number} is outside the range of [1, {MAX_LIMIT}]"
        ))),
    }
}

/// The most that any value of the filter asks for.
fn stars(filters: &Filters) -> Result<i64> {
    let mut most = 0;
    for value in filters.values("stars") {
        let stars = value.parse().map_err(|_| {
            Failure::bad_request(format!(
                "invalid filter 'stars={value}': strconv.Atoi: parsing {value:?}: invalid syntax"
            ))
        })?;
        most = most.max(stars);
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_dockerd() {
        for (text, expected) in [
            ("", Ok(25)),
            ("0", Ok(25)),
            ("100", Ok(100)),
            ("101", Err("limit 101 is outside the range of [1, 100]")),
            ("-1", Err("limit -1 is outside the range of [1, 100]")),
            ("x", Err("invalid limit specified: strconv.Atoi: parsing \"x\": invalid syntax")),
        ] {
            let parsed = limit(text).map_err(|failure| failure.message);
            assert_eq!(parsed, expected.map_err(str::to_owned), "{text}");
        }
    }
}
