//! Who may ask: keys, the name under which the server is addressed, and pages of other sites.
//!
//! A page of another site can make a browser send requests here. It may not by itself read answers, so what is guarded is what
//! a request does: a host that is a name of the attacker's (DNS rebinding) is refused, a POST with a foreign `Origin` is refused, and
//! one with an allowed `Origin` must be JSON, which a browser asks for first (preflight).

use std::net::{Ipv4Addr, Ipv6Addr};

use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, ORIGIN, VARY,
};
use hyper::{Method, StatusCode, Version};

use super::Settings;
use super::error::{Checked, Refusal, quoted};

/// What needs no key.
const OPEN: [&str; 3] = ["/", "/health", "/v1/health"];

/// Equal or not, in a time that depends on lengths alone.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let mut difference = a.len() ^ b.len();
    for i in 0..a.len().max(b.len()) {
        let (x, y) = (a.get(i).copied().unwrap_or(0), b.get(i).copied().unwrap_or(0));
        difference |= std::hint::black_box((x ^ y) as usize);
    }
    difference == 0
}

/// Whether a key of the server's came with the request.
pub fn check_key(settings: &Settings, path: &str, headers: &HeaderMap) -> Checked<()> {
    if settings.api_keys.is_empty() || OPEN.contains(&path) {
        return Ok(());
    }
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key.trim_ascii())
    });
    let given = bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes().trim_ascii())).unwrap_or_default();
    // All are compared, whichever fits.
    let fits = settings.api_keys.iter().fold(false, |fits, key| fits | is_same(key.as_bytes(), given));
    if fits { Ok(()) } else { Err(Refusal::unauthorised()) }
}

/// A host without its port.
fn host_of(authority: &str) -> &str {
    if authority.starts_with('[') {
        return authority.find(']').map_or(authority, |end| &authority[..=end]);
    }
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

fn is_address(host: &str) -> bool {
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    host.parse::<Ipv4Addr>().is_ok() || in_brackets.is_some_and(|host| host.parse::<Ipv6Addr>().is_ok())
}

/// Whether requests can call a host so.
pub fn can_be_host(text: &str) -> bool {
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    is_address(text) || !text.is_empty() && text.bytes().all(is_of_name)
}

/// Whether browsers can name an origin so, or it stands for some.
pub fn can_be_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return ["*", "localhost", "null"].contains(&text) };
    let is_of_scheme = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
    let is_of_authority = |byte: u8| byte.is_ascii_graphic() && !byte.is_ascii_uppercase() && !b"/?#@".contains(&byte);
    let default_port = [("http", ":80"), ("https", ":443")].iter().find(|(name, _)| *name == scheme);
    let is_written = !scheme.is_empty() && scheme.bytes().all(is_of_scheme) && !authority.is_empty();
    is_written && authority.bytes().all(is_of_authority) && default_port.is_none_or(|(_, port)| !authority.ends_with(port))
}

/// Whether a header can hold a key.
pub fn can_be_key(text: &str) -> bool {
    !text.contains(char::is_control)
}

/// Whether the request was addressed to this server and not to a name that somebody made point here.
pub fn check_host(settings: &Settings, version: Version, headers: &HeaderMap) -> Checked<()> {
    let Some(value) = headers.get(HOST) else {
        // Older clients do not say it.
        return if version < Version::HTTP_11 {
            Ok(())
        } else {
            Err(Refusal::protocol(StatusCode::BAD_REQUEST, "the header `Host` is missing: HTTP/1.1 asks for it"))
        };
    };
    let authority = value.to_str().unwrap_or_default();
    let host = host_of(authority);
    let is_known = is_address(host)
        || host.eq_ignore_ascii_case("localhost")
        || settings.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host));
    if is_known && headers.get_all(HOST).iter().count() == 1 {
        return Ok(());
    }
    Err(Refusal::forbidden(format!(
        "the host {} is neither an address nor `localhost`: if it is yours, start the server with {} among its `allowed-hosts`",
        quoted(authority),
        quoted(host),
    )))
}

/// Whether an origin is this machine, at any port.
fn is_local(origin: &str) -> bool {
    let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    rest.is_some_and(|authority| {
        let host = host_of(authority);
        let port = &authority[host.len()..];
        let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
        is_port && (host.eq_ignore_ascii_case("localhost") || host == "127.0.0.1" || host == "[::1]")
    })
}

/// Whether an origin is among those of the settings.
fn is_allowed(settings: &Settings, origin: &str) -> bool {
    settings.cors_origins.iter().any(|allowed| match allowed.as_str() {
        "*" => true,
        "localhost" => is_local(origin),
        allowed => allowed == origin,
    })
}

/// Whether the page is one that this server gave out.
fn is_own(origin: &str, headers: &HeaderMap) -> bool {
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    authority.zip(host).is_some_and(|(authority, host)| authority.eq_ignore_ascii_case(host))
}

/// Whether a page may ask for this.
pub fn check_origin(settings: &Settings, method: &Method, headers: &HeaderMap) -> Checked<()> {
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    if *method == Method::GET || *method == Method::HEAD || *method == Method::OPTIONS {
        return Ok(());
    }
    let origin = origin.to_str().unwrap_or_default();
    if !is_allowed(settings, origin) && !is_own(origin, headers) {
        return Err(Refusal::forbidden(format!(
            "pages of {} may not ask this server: if they should, start it with {} among its `cors-origins`",
            quoted(origin),
            quoted(origin),
        )));
    }
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if *method == Method::POST && !essence.eq_ignore_ascii_case("application/json") {
        return Err(Refusal::forbidden("a page's request must be `Content-Type: application/json`"));
    }
    Ok(())
}

/// What browsers are told: whose pages may read the answer.
pub fn add_cors(settings: &Settings, method: &Method, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    if *method == Method::OPTIONS {
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE, OPTIONS"));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*"));
    }
    let Some(origin) = origin.filter(|origin| is_allowed(settings, origin.to_str().unwrap_or_default())) else { return };
    let is_any = settings.cors_origins.iter().any(|allowed| allowed == "*");
    if is_any && !settings.cors_credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        return;
    }
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(VARY, HeaderValue::from_static("Origin"));
    if settings.cors_credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/server/http/guard.rs"]
mod tests;
