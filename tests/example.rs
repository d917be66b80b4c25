//! The example of the library runs, and says what the program says.

use lowkey_test_kit::demo_model;

#[path = "../examples/complete.rs"]
mod complete;

/// The example's own entry, which no test calls.
const _: fn() -> lowkey::Result<()> = complete::main;

#[test]
fn the_example_completes_a_prompt() {
    let model = demo_model();
    let answer = complete::complete(model.to_str().expect("UTF-8"), "The capital of France is").expect("an answer");
    assert!(answer.starts_with(" Paris."), "{answer:?}");
}
