//! The network's side of `lowkey pull`: one client, and what is asked of it.

use std::path::Path;
use std::time::Duration;

use ureq::http::StatusCode;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use crate::error::{Error, Result};

/// An address, and whether the hub's token goes there.
pub struct Asked<'a> {
    pub url: &'a str,
    pub is_hub: bool,
}

/// The client: proxies by the usual variables, root certificates of its own or those of SSL_CERT_FILE.
pub fn agent() -> Result<ureq::Agent> {
    let tls = TlsConfig::builder();
    let tls = match std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()) {
        None => tls,
        Some(path) => {
            let refuse = |why: &dyn std::fmt::Display| {
                let path = Path::new(&path).display();
                Error::stopped(format!(
                    "SSL_CERT_FILE: {path}: {why}: name a file of certificates in PEM, or none for lowkey's own"
                ))
            };
            let pem = std::fs::read(&path).map_err(|e| refuse(&e))?;
            let certificates = parse_pem(&pem).filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            });
            let certificates: Vec<_> = certificates.collect();
            if certificates.is_empty() {
                return Err(refuse(&"there is no certificate in it"));
            }
            tls.root_certs(RootCerts::new_with_certs(&certificates))
        }
    };
    let seconds = |n| Some(Duration::from_secs(n));
    let config = ureq::Agent::config_builder()
        .tls_config(tls.build())
        .user_agent(concat!("lowkey/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        .timeout_resolve(seconds(20))
        .timeout_connect(seconds(20))
        .timeout_recv_response(seconds(60))
        .timeout_per_read(seconds(30));
    Ok(config.build().into())
}

/// Why there is no answer.
pub enum Unanswered {
    /// It may go by.
    ForNow(String),
    ForGood(String),
}

impl Unanswered {
    fn of(error: ureq::Error) -> Unanswered {
        use ureq::Error::{BadUri, Http, LargeResponseHeader, Protocol, RedirectFailed, TooManyRedirects};
        const WAY_OUT: &str = "give the address of the file itself";
        match error {
            TooManyRedirects => {
                Unanswered::ForGood(format!("the server sends on from address to address without an end: {WAY_OUT}"))
            }
            BadUri(_) | Http(_) | LargeResponseHeader(..) | Protocol(_) | RedirectFailed => {
                Unanswered::ForGood(format!("what the server answers cannot be followed ({error}): {WAY_OUT}"))
            }
            error => Unanswered::ForNow(format!(
                "{error} (is the network up, and are HTTPS_PROXY and SSL_CERT_FILE as they should be?)"
            )),
        }
    }
}

/// Asks for an address, or for what of it comes from a byte on, if it is still what the server called so.
pub fn get(
    agent: &ureq::Agent,
    asked: &Asked,
    range: Option<(u64, &str)>,
) -> std::result::Result<ureq::http::Response<ureq::Body>, Unanswered> {
    let mut request = agent.get(asked.url);
    if let Some((from, tag)) = range {
        request = request.header("Range", format!("bytes={from}-")).header("If-Range", tag);
    }
    if let Some(token) = std::env::var("HF_TOKEN").ok().filter(|token| asked.is_hub && !token.is_empty()) {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    request.call().map_err(Unanswered::of)
}

/// A status that no repeating mends, in words.
pub fn refusal(asked: &Asked, status: StatusCode) -> Error {
    let why = match (status.as_u16(), asked.is_hub) {
        (401 | 403, true) => "it is not for everybody; set HF_TOKEN to a token of an account that has accepted its licence",
        (401 | 403, false) => "it is not for everybody; fetch it with a program that can log in, and give its path",
        (404, true) => "there is no such file or repository, or it is private (HF_TOKEN)",
        (404, false) => "there is no such file",
        (429, true) => "too many requests; wait, or set HF_TOKEN",
        (429, false) => "too many requests; wait",
        (500.., _) => "try again later",
        _ => "give the address of the file itself",
    };
    Error::stopped(format!("{}: the server answers {status}: {why}", asked.url))
}

/// A short text.
pub fn text(agent: &ureq::Agent, asked: &Asked, most_bytes: u64) -> Result<String> {
    let unanswered = |why: Unanswered| {
        let (Unanswered::ForNow(why) | Unanswered::ForGood(why)) = why;
        Error::stopped(format!("{}: {why}", asked.url))
    };
    let mut answer = get(agent, asked, None).map_err(unanswered)?;
    if answer.status() != StatusCode::OK {
        return Err(refusal(asked, answer.status()));
    }
    let text = answer.body_mut().with_config().limit(most_bytes).read_to_string();
    text.map_err(|e| unanswered(Unanswered::of(e)))
}
