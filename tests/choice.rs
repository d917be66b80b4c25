//! The choice of kernel sets at start: whatever is chosen, the bits are the same, it takes what it may take, and a set that was
//! asked for by name does everything.

use std::time::Duration;

use lowkey::gguf::quant::GgmlType;
use lowkey::kernels::{Kernels, Op, SetName};
use lowkey::kv::{KvCache, KvType};
use lowkey::mem::arena::Arena;
use lowkey::mem::plan::Plan;
use lowkey::mem::pool::Pool;
use lowkey::model::choice::LIMIT;
use lowkey::model::forward::{Lane, Logits, Machine, Model, forward};
use lowkey::model::guard::Guard;
use lowkey::model::scratch::{Scratch, ScratchShape};
use lowkey::session::{Layout, SessionParams};
use lowkey_test_kit::{budget_for, data, demo_model, emulated, kernel_sets, params, prose, session};

/// A machine that has not chosen, as a session carves it.
fn machine(model: &Model, layout: &Layout) -> Machine {
    let kernels = layout.kernels;
    let has_halves = model.weights.types().any(|ty| kernels.wants_halves(ty));
    let Layout { kv, n_slot, n_threads, .. } = *layout;
    let has_float = model.weights.has_float;
    let shape = ScratchShape { kv, n_slot, n_rows: kv.n_batch, n_threads, n_logits: 2, has_float, has_halves, kernels };
    let scratch = Arena::fill(|arena| Scratch::carve(arena, &model.config, &shape)).expect("memory");
    Machine { kernels, pool: Pool::new(n_threads).expect("threads"), scratch, guard: Guard::default() }
}

/// The bits of the logits after a batch, and after each of some small batches and single tokens.
fn logits(
    model: &Model,
    layout: &Layout,
    budget_bytes: u64,
    machine: &mut Machine,
    kernels: Kernels,
    tokens: &[u32],
) -> Vec<u32> {
    machine.set_kernels(kernels);
    let mut cache = KvCache::new(layout.kv, layout.n_slot, layout.rule, budget_bytes).expect("memory");
    let (mut bits, mut rest) = (Vec::new(), tokens);
    for n in [9, 4, 3, 2, 5, 1, 1, 1] {
        let (now, later) = rest.split_at(n);
        rest = later;
        let logits =
            forward(model, machine, [Lane { cache: &mut cache, recurrent: None, tokens: now, undo: None }], Logits::Last)
                .expect("logits");
        bits.extend(logits.iter().map(|logit| logit.to_bits()));
    }
    bits
}

/// Each operation left to each set alone, and everything left to sets at random.
fn assignments(auto: Kernels, types: &[GgmlType]) -> Vec<Kernels> {
    let mut ops = vec![Op::Attention];
    ops.extend(types.iter().flat_map(|&ty| [Op::Decode(ty), Op::Few(ty), Op::Batch(ty)]));
    let mut all: Vec<Kernels> =
        ops.iter().flat_map(|&op| auto.alternatives(op).map(move |set| (op, set))).map(|(op, set)| auto.with(op, set)).collect();
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..8 {
        all.push(ops.iter().fold(auto, |kernels, &op| {
            let sets: Vec<SetName> = auto.alternatives(op).collect();
            kernels.with(op, sets[rng.usize(..sets.len())])
        }));
    }
    all
}

#[test]
fn every_assignment_gives_the_same_logits() {
    let auto = Kernels::choose("auto").expect("a set");
    let tokens = prose(26);
    let mut files = vec![data("tiny-gqa.gguf"), data("tiny-mqa.gguf"), data("tiny-gqa-f32.gguf")];
    if emulated().is_none() {
        files.push(demo_model());
    }
    for file in files {
        for k_type in [KvType::F16, KvType::Q5H] {
            let model = lowkey_test_kit::model(&file);
            let mut params = SessionParams { n_batch: 16, k_type: Some(k_type), v_type: Some(k_type), ..params(0) };
            params.kv.budget_bytes = budget_for(&file, 20, &params);
            let layout = params.layout(&model).expect("a layout");
            let tokens: Vec<u32> = tokens.iter().map(|t| t % model.config.n_vocab as u32).collect();
            let mut types: Vec<GgmlType> = model.weights.types().collect();
            types.sort_by_key(|ty| ty.id());
            types.dedup();
            let mut machine = machine(&model, &layout);
            let mut of = |kernels| logits(&model, &layout, params.kv.budget_bytes, &mut machine, kernels, &tokens);
            let want = of(auto);
            assert!(want.iter().all(|&bits| f32::from_bits(bits).is_finite()));
            for kernels in assignments(auto, &types) {
                assert!(of(kernels) == want, "{}: {} differs", file.display(), kernels.describe());
            }
        }
    }
}

/// A clock that is looked at and nothing else: each look is a millisecond later.
#[test]
fn the_choice_stops_when_its_time_is_up() {
    let model = lowkey_test_kit::model(&demo_model());
    let layout = params(2 << 20).layout(&model).expect("a layout");
    let mut machine = machine(&model, &layout);
    let mut now = Duration::ZERO;
    let choice = machine.choose_kernels_by(&model, &mut || {
        now += Duration::from_millis(1);
        now
    });
    assert!(choice.found.is_empty() && choice.read_gb_s().is_none(), "{choice:?}");
    assert_eq!(machine.kernels.describe(), layout.kernels.name());
    // Beside what measures the pieces: a look before each type, three times, and before attention, at what is left: nothing.
    assert!(now < LIMIT + Duration::from_millis(15), "{now:?}");
    // With a clock that stands still there is time for everything, and nobody is faster than the default set.
    let choice = machine.choose_kernels_by(&model, &mut || Duration::ZERO);
    assert!(choice.found.len() >= 2 && choice.found.iter().all(|found| found.set == layout.kernels.set()), "{choice:?}");
    let has_several = layout.kernels.alternatives(Op::Few(GgmlType::Q8_0)).count() > 1;
    assert_eq!(choice.found.iter().any(|found| matches!(found.op, Op::Few(_))), has_several, "{choice:?}");
    assert_eq!(machine.kernels.describe(), layout.kernels.name());
}

#[test]
fn what_is_chosen_was_faster_and_costs_no_memory() {
    let path = demo_model();
    let auto = session(&path, &params(2 << 20));
    let default = Kernels::choose("auto").expect("a set");
    assert_eq!(auto.kernels().name(), default.name());
    for found in &auto.choice().found {
        assert!(!matches!(found.op, Op::Few(_)), "one stream without guesses has no few tokens: {found:?}");
        assert_eq!(auto.kernels().of(found.op), found.set);
        assert!(default.alternatives(found.op).any(|set| set == found.set), "{found:?}");
        assert!(if found.set == default.set() { found.gain == 1.0 } else { found.gain > 1.05 }, "{found:?}");
        assert_eq!(found.read_gb_s.is_some(), matches!(found.op, Op::Decode(_)), "{found:?}");
    }
    // Sets of a CPU need no more memory than its default one, so that nothing more is planned for the choice.
    let bytes = |kernels: &str| {
        let (model, mut plan) = (lowkey_test_kit::model(&path), Plan::default());
        let params = SessionParams { kernels: kernels.into(), ..params(2 << 20) };
        params.layout(&model).expect("a layout").plan(&model, &mut plan);
        plan.private_bytes()
    };
    assert!(kernel_sets().iter().all(|set| bytes(set.name()) <= bytes("auto")));
}

#[test]
fn a_set_asked_for_by_name_does_everything() {
    for set in kernel_sets() {
        let session = session(&demo_model(), &SessionParams { kernels: set.name().into(), ..params(2 << 20) });
        assert_eq!(session.kernels().describe(), set.name());
        assert!(session.choice().found.is_empty());
    }
}
