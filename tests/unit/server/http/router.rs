use super::*;

#[test]
fn a_panic_of_a_handler_is_an_answer() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let panics = async {
        tokio::task::yield_now().await;
        panic!("on purpose");
    };
    let response = runtime.block_on(guarded(panics));
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(response.headers().get("x-should-retry").map(HeaderValue::as_bytes), Some(&b"false"[..]));
    let fine = async {
        tokio::task::yield_now().await;
        Ok(StatusCode::OK.into_response())
    };
    assert_eq!(runtime.block_on(guarded(fine)).status(), StatusCode::OK);
}
