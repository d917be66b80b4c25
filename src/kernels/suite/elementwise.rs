//! What is done element by element, and what no set has of its own.

use half::f16;

use super::fixtures::{Bench, bits, random_x};
use crate::kernels::rows::codec::RowType;
use crate::kernels::{AngleSum, DeltaNet, Kernels, Mamba, Placing, RopeOrder, Xielu, flip, hadamard};

#[test]
fn elementwise_kernels_equal_the_scalar_set_bit_for_bit() {
    let scalar = Kernels::choose("scalar").unwrap();
    for kernels in Kernels::available() {
        for n in [1, 7, 8, 9, 31, 64, 576] {
            let (x, y) = (random_x(n, 1), random_x(n, 2));
            let run = |k: Kernels| {
                let mut norm = vec![f32::NAN; n];
                k.rms_norm(&x, &y, 1e-5, &mut norm);
                let (mut sum, mut silu, mut gelu, mut capped) = (x.clone(), x.clone(), x.clone(), x.clone());
                k.add(&mut sum, &y);
                k.silu_mul(&mut silu, &y);
                k.gelu_mul(&mut gelu, &y);
                k.soft_cap(&mut capped, 1.5);
                let (mut relu2, mut xielu) = (x.clone(), x.clone());
                k.relu2(&mut relu2);
                k.xielu(&mut xielu, &Xielu::new(0.8, 0.3, 0.5, -1e-6));
                // Elements on both sides of the limits.
                let (mut clamped, far) =
                    (x.iter().map(|x| 8.0 * x).collect::<Vec<f32>>(), y.iter().map(|y| 8.0 * y).collect::<Vec<f32>>());
                k.clamped_silu_mul(&mut clamped, &far);
                let (mut silu_alone, mut gated) = (x.clone(), x.clone());
                k.silu(&mut silu_alone);
                k.sigmoid_mul(&mut gated, &y);
                let capped = [capped, relu2, xielu, clamped, silu_alone, gated].map(|x| bits(&x)).concat();
                [bits(&norm), bits(&sum), bits(&silu), bits(&gelu), capped, bits(&[k.l2_norm(&x)])]
            };
            assert_eq!(run(kernels), run(scalar), "{} n = {n}", kernels.name());
        }
        for n_cols in [32, 64, 576] {
            let x = random_x(3 * n_cols, 3);
            let run = |k: Kernels| {
                let mut bench = Bench::new(3, n_cols);
                let a = k.quantize(&mut bench.pool, &x, n_cols, &mut bench.acts);
                (a.q.to_vec(), bits(a.d), bits(a.s), a.sum.to_vec(), a.sum16.to_vec())
            };
            assert_eq!(run(kernels), run(scalar), "{} n_cols = {n_cols}", kernels.name());
        }
    }
}

#[test]
fn delta_nets_equal_the_scalar_set_bit_for_bit_and_batches_single_tokens() {
    let (n_tok, n_k_head, n_v_head, eps) = (5, 2, 4, 1e-6);
    for d in [8, 24, 64, 128] {
        let qkv = random_x(n_tok * (2 * n_k_head + n_v_head) * d, 1);
        let unit = |seed| random_x(n_tok * n_v_head, seed).iter().map(|x| 1.0 / (1.0 + x.abs())).collect::<Vec<f32>>();
        let (decay, beta, norm) = (unit(2), unit(3), random_x(d, 4));
        let run = |kernels: Kernels, together: usize| {
            let mut bench = Bench::new(2, 32);
            let (mut state, mut gate) = (random_x(n_v_head * d * d, 5), random_x(n_tok * n_v_head * d, 6));
            for first in (0..n_tok).step_by(together) {
                let of = |width: usize| first * width..(first + together).min(n_tok) * width;
                let (qkv, decay, beta) = (&qkv[of((2 * n_k_head + n_v_head) * d)], &decay[of(n_v_head)], &beta[of(n_v_head)]);
                let (state, gate) = (&mut state[..], &mut gate[of(n_v_head * d)]);
                let net = DeltaNet { head_dim: d, n_k_head, n_v_head, qkv, decay, beta, norm: &norm, eps, state, gate };
                kernels.delta_net(&mut bench.pool, net);
            }
            [bits(&state), bits(&gate)]
        };
        let want = run(Kernels::choose("scalar").unwrap(), 1);
        for kernels in Kernels::available() {
            for together in [1, 2, 5] {
                assert_eq!(run(kernels, together), want, "{}, {together} together, heads of {d}", kernels.name());
            }
        }
    }
}

#[test]
fn mamba_equals_the_scalar_set_bit_for_bit_batches_single_tokens_and_its_definition() {
    let (n_tok, n_head) = (5, 4);
    for (d, n_state, n_group) in [(8, 16, 1), (4, 24, 2), (64, 128, 1), (32, 256, 4)] {
        let (inner, row) = (n_head * d, n_head * d + 2 * n_group * n_state);
        let xbc = random_x(n_tok * row, 1);
        let unit = |seed| random_x(n_tok * n_head, seed).iter().map(|x| 1.0 / (1.0 + x.abs())).collect::<Vec<f32>>();
        let (decay, dt, skip) = (unit(2), unit(3), random_x(n_head, 4));
        let (start, gates) = (random_x(inner * n_state, 5), random_x(n_tok * inner, 6));
        let run = |kernels: Kernels, together: usize| {
            let mut bench = Bench::new(2, 32);
            let (mut state, mut gate) = (start.clone(), gates.clone());
            for first in (0..n_tok).step_by(together) {
                let of = |width: usize| first * width..(first + together).min(n_tok) * width;
                let (xbc, decay, dt) = (&xbc[of(row)], &decay[of(n_head)], &dt[of(n_head)]);
                let (skip, state, gate) = (&skip[..], &mut state[..], &mut gate[of(inner)]);
                let net = Mamba { head_dim: d, n_head, n_state, n_group, xbc, decay, dt, skip, state, gate };
                kernels.mamba(&mut bench.pool, net);
            }
            (state, gate)
        };
        let scalar = run(Kernels::choose("scalar").unwrap(), 1);
        let want = [bits(&scalar.0), bits(&scalar.1)];
        for kernels in Kernels::available() {
            for together in [1, 2, 5] {
                let (state, gate) = run(kernels, together);
                assert!([bits(&state), bits(&gate)] == want, "{}, {together} together, heads of {d}", kernels.name());
            }
        }
        let mut state: Vec<f64> = start.iter().map(|&s| s.into()).collect();
        for (at, (&gate, &got)) in gates.iter().zip(&scalar.1).enumerate() {
            let (t, channel) = (at / inner, at % inner);
            let (head, group) = (channel / d, channel / d / (n_head / n_group));
            let of = |i: usize| f64::from(xbc[t * row + i]);
            let (b, x) = (inner + group * n_state, of(channel));
            let (decay, dt) = (f64::from(decay[t * n_head + head]), f64::from(dt[t * n_head + head]));
            let mut y = f64::from(skip[head]) * x;
            for (n, s) in state[channel * n_state..][..n_state].iter_mut().enumerate() {
                *s = decay * *s + dt * x * of(b + n);
                y += *s * of(b + n_group * n_state + n);
            }
            let want = y * f64::from(gate) / (1.0 + (-f64::from(gate)).exp());
            assert!((f64::from(got) - want).abs() < 1e-3 * (1.0 + want.abs()), "token {t}, channel {channel}: {got}, {want}");
        }
    }
}

/// The matrix by its definition: element (i, j) is the parity of the bits that i and j share.
#[test]
fn the_hadamard_turn_is_the_orthonormal_matrix() {
    for n in [8, 16, 32, 64, 128, 256, 512, 1024] {
        let (mut got, x) = (random_x(n, 1), random_x(n, 1));
        hadamard(&mut got);
        for (i, got) in got.iter().enumerate() {
            let signed = |j: usize| if (i & j).count_ones() % 2 == 0 { f64::from(x[j]) } else { -f64::from(x[j]) };
            let want = (0..n).map(signed).sum::<f64>() / (n as f64).sqrt();
            assert!((f64::from(*got) - want).abs() < 1e-5, "element {i} of {n}: {got}, {want}");
        }
        #[cfg(target_arch = "aarch64")]
        {
            let mut want = x;
            crate::kernels::spec::arithmetic::hadamard(&mut want);
            assert_eq!(bits(&got), bits(&want), "{n}: not the bits of the specification");
        }
    }
}

#[test]
fn rows_in_f16_are_rounded_as_half_does_it() {
    let special = [0.0, -0.0, 1e9, -1e9, f32::INFINITY, f32::NEG_INFINITY, 65_519.0, 1e-8, -3e-8, 6.1e-5, 1.0 / 3.0, 1.000_488_3];
    for n in [8, 16, 80, 88] {
        let mut x = random_x(n, 9);
        x[..n.min(special.len())].copy_from_slice(&special[..n.min(special.len())]);
        let mut got = vec![0; 2 * n];
        RowType::F16.store(&x, &mut got);
        let want: Vec<u8> = x.iter().flat_map(|x| f16::from_f32(x.clamp(-65504.0, 65504.0)).to_le_bytes()).collect();
        assert_eq!(got, want, "{n}");
        // What is no number becomes one.
        x.fill(f32::NAN);
        RowType::F16.store(&x, &mut got);
        assert!(got.as_chunks::<2>().0.iter().all(|h| f16::from_le_bytes(*h).is_finite()));
    }
}

/// Keys that are read again, on every set, against steps that are each somewhere else too: the row's elements, the mean, the Hadamard
/// matrix, a turn by the sum of two angles.
#[test]
fn keys_that_are_read_again_are_placed_by_the_same_bits() {
    let unit = |n: usize, seed| random_x(n, seed).iter().map(|x| x.sin()).collect::<Vec<f32>>();
    for (head_dim, n_rot) in [(64, 64), (80, 80), (128, 64), (40, 20), (24, 0), (256, 256)] {
        let (x, mean, a, b) = (random_x(head_dim, 1), random_x(head_dim, 2), unit(n_rot, 3), unit(n_rot, 4));
        for (ty, order, is_turned, mean) in RowType::ALL.into_iter().flat_map(|ty| {
            let mean = &mean[..];
            [(ty, RopeOrder::Norm, true, mean), (ty, RopeOrder::Neox, false, &[][..]), (ty, RopeOrder::Neox, true, &[][..])]
        }) {
            let turned = if is_turned { 1 << head_dim.trailing_zeros() } else { 0 };
            let p = Placing { ty, turned, head_dim, n_rot, order };
            let mut stored = vec![0u8; RowType::F16.row_bytes(head_dim)];
            ty.store(&x, &mut stored[..ty.row_bytes(head_dim)]);
            let mut want = vec![0f32; head_dim];
            ty.load(&stored, &mut want);
            want.iter_mut().zip(mean).for_each(|(x, mean)| *x += mean);
            for part in want.chunks_exact_mut(turned.max(1)).filter(|_| is_turned) {
                hadamard(part);
                flip(part);
            }
            for i in 0..n_rot / 2 {
                let (j, k) = if order == RopeOrder::Norm { (2 * i, 2 * i + 1) } else { (i, i + n_rot / 2) };
                let (cos_a, sin_a, cos_b, sin_b) = (a[i], a[n_rot / 2 + i], b[i], b[n_rot / 2 + i]);
                let (cos, sin) = (cos_a * cos_b - sin_a * sin_b, sin_a * cos_b + cos_a * sin_b);
                (want[j], want[k]) = (want[j] * cos - want[k] * sin, want[j] * sin + want[k] * cos);
            }
            let mut want_row = stored.clone();
            RowType::F16.store(&want, &mut want_row);
            for kernels in Kernels::available() {
                let (mut row, mut key) = (stored.clone(), vec![f32::NAN; head_dim]);
                kernels.place(&p, &mut row, mean, AngleSum(&a, &b), &mut key);
                assert_eq!(row, want_row, "{}: {p:?}", kernels.name());
            }
        }
    }
}
