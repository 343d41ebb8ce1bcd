// The draws of docs/vectors/draws.json in Go. Reads `seed point entity hit` between tabs, a line each; writes the draw and
// its parts per million.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

func splitmix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func fnv1a(text string) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := 0; i < len(text); i++ {
		h = (h ^ uint64(text[i])) * 0x100000001b3
	}
	return h
}

func draw(seed uint64, point, entity string, hit uint64) uint64 {
	return splitmix(splitmix(splitmix(seed)^fnv1a(point+"\x00"+entity)) ^ hit)
}

func number(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		f := strings.Split(lines.Text(), "\t")
		d := draw(number(f[0]), f[1], f[2], number(f[3]))
		fmt.Printf("%016x %d\n", d, d%1000000)
	}
}
