//! Tests of `mem::pool`.

use super::*;
use std::sync::atomic::AtomicU32;

#[test]
fn every_task_runs_once_however_they_are_handed_out() {
    for n_threads in [1, 2, 5] {
        let mut pool = Pool::new(n_threads).unwrap();
        for n_tasks in [0, 1, 2, 3, 100, 1000] {
            let counts: Vec<AtomicU32> = (0..n_tasks).map(|_| AtomicU32::new(0)).collect();
            pool.run(n_tasks, &|thread, task| {
                assert!(thread < n_threads);
                counts[task].fetch_add(1, Ordering::Relaxed);
            });
            pool.run_apart_with(&mut vec![(); n_threads], n_tasks, |(), task| {
                counts[task].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 2), "{n_threads} threads, {n_tasks} tasks");
        }
    }
}

/// Threads walk through their own runs in order, and through another's only when they are done.
#[test]
fn each_thread_begins_with_a_run_of_its_own() {
    for (n_threads, n_tasks) in [(1, 7), (2, 64), (3, 64), (5, 3)] {
        let mut pool = Pool::new(n_threads).unwrap();
        let runs: Vec<usize> = (0..=n_threads).map(|run| Tasks { n: n_tasks, n_runs: n_threads }.first(run)).collect();
        assert!(runs[0] == 0 && runs[n_threads] == n_tasks && runs.is_sorted());
        let mut done = vec![Vec::with_capacity(n_tasks); n_threads];
        pool.run_apart_with(&mut done, n_tasks, |done: &mut Vec<usize>, task| done.push(task));
        for (thread, done) in done.iter().enumerate() {
            let own = runs[thread]..runs[thread + 1];
            let n_own = done.iter().take_while(|task| own.contains(task)).count();
            assert!(done[..n_own].is_sorted(), "{done:?}");
            assert!(!done[n_own..].iter().any(|task| own.contains(task)), "{done:?}");
        }
    }
}

#[test]
fn chunks_cover_the_slice_and_states_are_private() {
    let mut pool = Pool::new(3).unwrap();
    let mut out = vec![0usize; 1003];
    let mut states = vec![0usize; 3];
    pool.for_chunks_with(&mut states, &mut out, 10, |state, index, chunk| {
        *state += chunk.len();
        chunk.fill(index + 1);
    });
    assert!(out.iter().enumerate().all(|(i, &v)| v == i / 10 + 1));
    assert_eq!(states.iter().sum::<usize>(), 1003);
}

#[test]
fn pieces_come_behind_tasks_that_have_none_and_may_wait_for_them() {
    for n_threads in [1, 3] {
        let mut pool = Pool::new(n_threads).unwrap();
        let (mut out, mut states, done) = (vec![0usize; 95], vec![(); n_threads], AtomicUsize::new(0));
        pool.for_chunks_behind(&mut states, 4, &mut out, 10, |(), task, piece| {
            if task < 4 {
                assert!(piece.is_empty());
                done.fetch_add(1, Ordering::Release);
            } else {
                while done.load(Ordering::Acquire) < 4 {
                    std::thread::yield_now();
                }
                piece.fill(task);
            }
        });
        assert!(out.iter().enumerate().all(|(i, &v)| v == 4 + i / 10), "{out:?}");
    }
}

#[test]
fn workers_wake_after_they_parked() {
    let mut pool = Pool::new(2).unwrap();
    for _ in 0..3 {
        std::thread::sleep(std::time::Duration::from_millis(30));
        let sum = AtomicUsize::new(0);
        pool.run(64, &|_, task| {
            sum.fetch_add(task, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 64 * 63 / 2);
    }
}

#[test]
fn a_panic_in_a_task_is_not_lost() {
    let mut pool = Pool::new(2).unwrap();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        pool.run(100, &|_, task| assert!(task != 57, "task 57"));
    }));
    assert!(caught.is_err());
}
