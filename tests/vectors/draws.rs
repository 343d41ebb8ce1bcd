// The draws of docs/vectors/draws.json in Rust. Reads `seed point entity hit` between tabs, a line each; writes the draw
// and its parts per million.
use std::io::BufRead;

fn splitmix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e3779b97f4a7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58476d1ce4e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d049bb133111eb);
    x ^ x >> 31
}

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf29ce484222325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100000001b3))
}

fn draw(seed: u64, point: &str, entity: &str, hit: u64) -> u64 {
    splitmix(splitmix(splitmix(seed) ^ fnv1a(&format!("{point}\0{entity}"))) ^ hit)
}

fn main() {
    for line in std::io::stdin().lock().lines().map(Result::unwrap) {
        let f: Vec<&str> = line.split('\t').collect();
        let d = draw(f[0].parse().unwrap(), f[1], f[2], f[3].parse().unwrap());
        println!("{:016x} {}", d, d % 1_000_000);
    }
}
