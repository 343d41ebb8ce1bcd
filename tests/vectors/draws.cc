// The draws of docs/vectors/draws.json in C++17. Reads `seed point entity hit` between tabs, a line each; writes the draw
// and its parts per million.
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>

static uint64_t splitmix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

static uint64_t fnv1a(const std::string& text) {
  uint64_t h = 0xcbf29ce484222325u;
  for (unsigned char byte : text) h = (h ^ byte) * 0x100000001b3u;
  return h;
}

static uint64_t draw(uint64_t seed, const std::string& point, const std::string& entity, uint64_t hit) {
  return splitmix(splitmix(splitmix(seed) ^ fnv1a(point + '\0' + entity)) ^ hit);
}

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream fields(line);
    std::string seed, point, entity, hit;
    std::getline(fields, seed, '\t');
    std::getline(fields, point, '\t');
    std::getline(fields, entity, '\t');
    std::getline(fields, hit, '\t');
    uint64_t d = draw(std::stoull(seed), point, entity, std::stoull(hit));
    std::printf("%016" PRIx64 " %" PRIu64 "\n", d, d % 1000000);
  }
}
