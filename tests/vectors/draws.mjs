// The draws of docs/vectors/draws.json in JavaScript. Reads `seed point entity hit` between tabs, a line each; writes the
// draw and its parts per million.
import { readFileSync } from "node:fs";

const u64 = (x) => BigInt.asUintN(64, x);

function splitmix(x) {
  x = u64(x + 0x9e3779b97f4a7c15n);
  x = u64((x ^ (x >> 30n)) * 0xbf58476d1ce4e5b9n);
  x = u64((x ^ (x >> 27n)) * 0x94d049bb133111ebn);
  return x ^ (x >> 31n);
}

function fnv1a(text) {
  let h = 0xcbf29ce484222325n;
  for (const byte of new TextEncoder().encode(text)) h = u64((h ^ BigInt(byte)) * 0x100000001b3n);
  return h;
}

const draw = (seed, point, entity, hit) =>
  splitmix(splitmix(splitmix(seed) ^ fnv1a(`${point}\0${entity}`)) ^ hit);

for (const line of readFileSync(0, "utf8").split("\n").slice(0, -1)) {
  const [seed, point, entity, hit] = line.split("\t");
  const d = draw(BigInt(seed), point, entity, BigInt(hit));
  console.log(`${d.toString(16).padStart(16, "0")} ${d % 1000000n}`);
}
