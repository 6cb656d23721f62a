//! Benchmarks against the peers, measured in one run; the inputs are made by the benches themselves and kept in
//! `target/bench-data`. `NSPAWN_BENCH_QUICK=1` measures small inputs a few times, to see that all of it works.
