use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Version};

use super::*;

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (HeaderName::from_bytes(name.as_bytes()).expect("a name"), HeaderValue::from_str(value).expect("a value"))
    };
    let mut map = HeaderMap::new();
    for (name, value) in pairs.iter().map(pair) {
        map.append(name, value);
    }
    map
}

#[test]
fn keys_are_equal_as_a_whole_or_not_at_all() {
    let settings = Settings { api_keys: vec!["first".into(), "second-key".into()], ..Settings::default() };
    let check = |name: &str, value: &str| check_key(&settings, "/slots", &headers(&[(name, value)])).is_ok();
    assert!(check("authorization", "Bearer first") && check("authorization", "bearer second-key"));
    assert!(check("x-api-key", "second-key") && check("X-Api-Key", " first "));
    for wrong in ["Bearer firs", "Bearer first1", "Bearer ", "Basic first", "first", "Bearer first\u{e9}"] {
        assert!(!check("authorization", wrong), "{wrong}");
    }
    assert!(check_key(&settings, "/slots", &HeaderMap::new()).is_err());
    assert!(check_key(&settings, "/health", &HeaderMap::new()).is_ok());
    // A list without keys asks for none.
    assert!(check_key(&Settings::default(), "/slots", &HeaderMap::new()).is_ok());
    assert!(is_same(b"", b"") && !is_same(b"", b"\0") && !is_same(b"a\0", b"a"));
}

#[test]
fn names_of_other_machines_do_not_lead_here() {
    let settings = Settings { allowed_hosts: vec!["pi.local".into()], ..Settings::default() };
    let check = |host: &str| check_host(&settings, Version::HTTP_11, &headers(&[("host", host)]));
    for good in
        ["127.0.0.1", "192.168.1.7:8080", "[::1]:80", "[fe80::1]", "localhost", "LOCALHOST:1", "pi.local:8080", "Pi.Local"]
    {
        assert!(check(good).is_ok(), "{good}");
    }
    for bad in ["evil.com", "evil.com:8080", "localhost.evil.com", "127.0.0.1.nip.io", "", "::1", "[evil]", "pi.local.evil.com"] {
        assert_eq!(check(bad).expect_err(bad).status, StatusCode::FORBIDDEN, "{bad}");
    }
    assert!(check_host(&settings, Version::HTTP_11, &headers(&[("host", "localhost"), ("host", "localhost")])).is_err());
    assert!(check_host(&settings, Version::HTTP_11, &HeaderMap::new()).is_err());
    assert!(check_host(&settings, Version::HTTP_10, &HeaderMap::new()).is_ok());
}

#[test]
fn pages_of_others_may_not_post() {
    let json = ("content-type", "application/json; charset=utf-8");
    let check = |origins: &[&str], pairs: &[(&str, &str)]| {
        let settings = Settings { cors_origins: origins.iter().map(|o| o.to_string()).collect(), ..Settings::default() };
        check_origin(&settings, &Method::POST, &headers(pairs)).is_ok()
    };
    assert!(check(&[], &[]), "no page, no rule");
    assert!(!check(&[], &[("origin", "http://evil.com"), ("host", "127.0.0.1:8080"), json]));
    assert!(!check(&[], &[("origin", "null"), ("host", "127.0.0.1:8080"), json]));
    assert!(check(&[], &[("origin", "http://127.0.0.1:8080"), ("host", "127.0.0.1:8080"), json]), "its own page");
    assert!(!check(&[], &[("origin", "http://127.0.0.1:3000"), ("host", "127.0.0.1:8080"), json]), "another program's");
    assert!(check(&["localhost"], &[("origin", "http://127.0.0.1:3000"), ("host", "127.0.0.1:8080"), json]));
    assert!(check(&["https://a.example"], &[("origin", "https://a.example"), json]));
    assert!(!check(&["https://a.example"], &[("origin", "https://a.example.evil"), json]));
    assert!(check(&["*"], &[("origin", "null"), json]));
    assert!(!check(&["*"], &[("origin", "http://x"), ("content-type", "text/plain")]), "what needs no preflight");
    assert!(!check(&["*"], &[("origin", "http://x")]));
}

#[test]
fn this_machine_is_told_from_what_looks_like_it() {
    for good in ["http://localhost", "http://localhost:8080", "https://127.0.0.1:3000", "http://[::1]", "http://[::1]:3000"] {
        assert!(is_local(good), "{good}");
    }
    for bad in [
        "http://localhost.evil.com",
        "http://notlocalhost",
        "localhost",
        "http://localhost:8080.evil.com",
        "http://127.0.0.1.evil",
        "null",
        "",
    ] {
        assert!(!is_local(bad), "{bad}");
    }
}

#[test]
fn one_origin_is_told_and_never_the_list() {
    let told = |origins: &[&str], credentials: bool, origin: &str| {
        let settings = Settings {
            cors_origins: origins.iter().map(|o| o.to_string()).collect(),
            cors_credentials: credentials,
            ..Settings::default()
        };
        let mut map = HeaderMap::new();
        add_cors(&settings, &Method::GET, Some(&HeaderValue::from_str(origin).expect("a value")), &mut map);
        let get = |name: &str| map.get(name).map(|value| value.to_str().expect("text").to_owned());
        (get("access-control-allow-origin"), get("access-control-allow-credentials"))
    };
    assert_eq!(told(&[], false, "http://a"), (None, None));
    assert_eq!(told(&["http://b", "http://a"], false, "http://a"), (Some("http://a".into()), None));
    assert_eq!(told(&["*"], false, "http://a"), (Some("*".into()), None));
    assert_eq!(told(&["*"], true, "http://a"), (Some("http://a".into()), Some("true".into())));
    assert_eq!(told(&["localhost"], false, "http://localhost:1"), (Some("http://localhost:1".into()), None));
    assert_eq!(told(&["localhost"], true, "http://evil"), (None, None));
}

#[test]
fn what_no_request_can_say_is_known_before() {
    for good in ["pi.local", "PI", "a_b-c.d.", "192.168.1.7", "[fe80::1]"] {
        assert!(can_be_host(good), "{good}");
    }
    for bad in ["", "pi.local:8192", "http://pi.local", "pi.local/", "a b", "*", "m\u{fc}sli.local"] {
        assert!(!can_be_host(bad), "{bad}");
    }
    for good in ["*", "localhost", "null", "http://b.com", "https://b.com:8443", "http://[::1]:3000", "app://obsidian.md"] {
        assert!(can_be_origin(good), "{good}");
    }
    for bad in [
        "",
        "b.com",
        "localhost:3000",
        "http://",
        "://b.com",
        "http://b.com/",
        "http://B.com",
        "HTTP://b.com",
        "http://b.com:80",
        "https://b.com:443",
        "http://a@b.com",
        "http://a b",
    ] {
        assert!(!can_be_origin(bad), "{bad}");
    }
    assert!(can_be_key("a,b c\u{e9}") && !can_be_key("a\nb") && !can_be_key("a\0"));
}
