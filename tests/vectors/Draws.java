// The draws of docs/vectors/draws.json in Java. Reads `seed point entity hit` between tabs, a line each; writes the draw
// and its parts per million. A long holds the unsigned number: multiplication, addition and XOR are the same.
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;

final class Draws {
  static long splitmix(long x) {
    x += 0x9e3779b97f4a7c15L;
    x = (x ^ x >>> 30) * 0xbf58476d1ce4e5b9L;
    x = (x ^ x >>> 27) * 0x94d049bb133111ebL;
    return x ^ x >>> 31;
  }

  static long fnv1a(String text) {
    long h = 0xcbf29ce484222325L;
    for (byte each : text.getBytes(StandardCharsets.UTF_8)) {
      h = (h ^ (each & 0xff)) * 0x100000001b3L;
    }
    return h;
  }

  static long draw(long seed, String point, String entity, long hit) {
    return splitmix(splitmix(splitmix(seed) ^ fnv1a(point + '\0' + entity)) ^ hit);
  }

  public static void main(String[] args) throws IOException {
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      String[] f = line.split("\t", -1);
      long d = draw(Long.parseUnsignedLong(f[0]), f[1], f[2], Long.parseUnsignedLong(f[3]));
      System.out.printf("%016x %s%n", d, Long.toUnsignedString(Long.remainderUnsigned(d, 1000000)));
    }
  }
}
