//! Tests of `mem::arena`.

use super::*;

#[test]
fn carved_buffers_are_disjoint_aligned_and_zeroed() {
    let carve = |arena: &mut Arena| (arena.carve::<f32>(5), arena.carve::<u8>(1), arena.carve::<i8>(64));
    let (mut a, mut b, c) = Arena::fill(carve).unwrap();
    a.fill(f32::NAN);
    b[0] = 7;
    drop(a);
    assert_eq!((b[0], &c[..]), (7, &[0i8; 64][..]));
    assert_eq!((b.as_ptr() as usize % ALIGN, c.as_ptr() as usize % ALIGN), (0, 0));
}

#[test]
fn an_arena_that_measures_counts_by_part_and_gives_nothing() {
    let mut arena = Arena::measure();
    assert!(arena.carve::<f32>(17).is_empty());
    arena.begin_part("one");
    (0..2).for_each(|_| drop(arena.carve::<u8>(1)));
    arena.begin_part("none");
    assert_eq!((arena.used(), arena.parts()), (256, &[("one", 128), ("none", 0)][..]));
}

#[test]
#[should_panic(expected = "no room")]
fn carving_past_the_end_is_our_mistake() {
    Arena::take(64).unwrap().carve::<f32>(17);
}
