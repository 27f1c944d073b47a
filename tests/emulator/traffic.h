// Counts what a block asks of memory, warp by warp as a GPU would: part of the runtime, for tests/cost.
//
// Instances that are compiled for it call a hook for every load and store. Accesses are kept per thread until all
// threads of the block have met; then those that the lanes of a warp made at one place in the code, for the same time,
// are one request. Lanes that skip a pass of a loop are matched with the wrong pass from there on, which at the borders
// of an image shifts an address by a cell and changes the counts little.
//
// A request to global memory takes the 32-byte sectors that it touches; what of them is not in the first-level cache
// (of whole lines of 128 bytes, the one unused for longest replaced first) is asked of the second level. A request to
// shared memory is done in turns of so many lanes that 128 bytes go to or from registers, and each turn takes as many
// wavefronts as the busiest bank has words. A turn serves twice as many lanes where lanes i and i ^ 1 all read the same,
// or all i and i ^ 2: NVIDIA, answer to "Unexpected shared memory bank conflict", developer forum.
#pragma once
#include <algorithm>
#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

#include "runtime.h"

namespace emulator {

enum Space { A, B, BIAS, OUT, SHARED, SPACES, DYNAMIC = SPACES };  // dynamic shared memory counts as shared
constexpr unsigned kinds = 4, widths = 5;

// Of one space, kind and width. `taken` and `least` are sectors, or wavefronts; `least` is what the same bytes would
// take side by side. Its mirror is in runner.py.
struct Tally {
  double requests, taken, least, lines, from_l2;
};

struct Range {
  uint64_t begin, end;
};

class Traffic {
 public:
  Range ranges[SPACES + 1];
  Tally (*tallies)[kinds][widths];  // by space, kind and the binary logarithm of the width; null if nobody counts
  uint64_t l1_lines;
  const char* code;  // the instance's, and how often what begins at each of its bytes was run
  uint64_t *passes, code_bytes;
  uint64_t* under_way;  // the most bytes that one thread's asynchronous copies had to bring at once

  void begin_block(unsigned threads) {
    lists.resize(threads);
    for (List& list : lists) list = {};
    recent.clear();
    cached.clear();
  }

  void add(unsigned thread, const void* site, const void* at, unsigned width, Kind kind) {
    const auto address = reinterpret_cast<uint64_t>(at);
    for (unsigned space = 0; space <= SPACES; space++) {
      if (address < ranges[space].begin || address >= ranges[space].end) continue;
      List& list = lists[thread];
      list.count++;
      if (list.accesses.size() < most_kept) {
        const unsigned log_width = width >= 16 ? 4 : __builtin_ctz(width);
        const Space of = space == DYNAMIC ? SHARED : Space(space);
        list.accesses.push_back({site, address, of, kind, static_cast<unsigned char>(log_width)});
      }
      return;
    }
  }

  void pass(const void* at) {
    const uint64_t offset = static_cast<const char*>(at) - code;
    if (offset < code_bytes) passes[offset]++;
  }

  // All threads have met: what they did since they last met becomes requests.
  void meet() {
    std::vector<Request> requests;
    double count = 0, kept = 0;
    for (unsigned first = 0; first < lists.size(); first += 32) gather_warp(first, requests);
    for (List& list : lists) {
      count += list.count;
      kept += list.accesses.size();
      list.count = 0;
      list.accesses.clear();
    }
    std::stable_sort(requests.begin(), requests.end(),
                     [](const Request& a, const Request& b) { return a.position < b.position; });
    for (Request& request : requests) tally(request, count / kept);
  }

 private:
  struct Access {
    const void* site;
    uint64_t address;
    Space space;
    Kind kind;
    unsigned char log_width;
  };
  struct List {
    std::vector<Access> accesses;
    double count;
  };
  struct Request {
    size_t position;
    Space space;
    Kind kind;
    unsigned log_width, lanes;
    uint64_t address[32];
    unsigned char lane[32];
  };
  static constexpr size_t most_kept = 1 << 15;  // of a thread; of longer stretches the beginning stands for all

  std::vector<List> lists;
  std::list<uint64_t> recent;  // lines of the first-level cache, the last used first
  std::unordered_map<uint64_t, std::pair<std::list<uint64_t>::iterator, unsigned>> cached;  // and their sectors

  void gather_warp(unsigned first, std::vector<Request>& requests) {
    std::unordered_map<uint64_t, unsigned> numbers;  // of places in the code
    std::vector<std::vector<unsigned>> passes;       // by place: the requests that are its passes
    for (unsigned lane = 0; lane < 32 && first + lane < lists.size(); lane++) {
      std::vector<unsigned> passed(passes.size());
      const auto& accesses = lists[first + lane].accesses;
      for (size_t position = 0; position < accesses.size(); position++) {
        const Access& access = accesses[position];
        const uint64_t place = reinterpret_cast<uint64_t>(access.site) * SPACES + access.space;
        const unsigned number = numbers.try_emplace(place, passes.size()).first->second;
        if (number == passes.size()) passes.emplace_back();
        if (number >= passed.size()) passed.resize(number + 1);
        const unsigned pass = passed[number]++;
        if (pass == passes[number].size()) {
          passes[number].push_back(requests.size());
          requests.push_back({position, access.space, access.kind, access.log_width, 0, {}, {}});
        }
        Request& request = requests[passes[number][pass]];
        request.address[request.lanes] = access.address;
        request.lane[request.lanes++] = lane;
      }
    }
  }

  void tally(Request& request, double scale) {
    Tally& tally = tallies[request.space][request.kind][request.log_width];
    const unsigned width = 1 << request.log_width;
    tally.requests += scale;
    const unsigned words = width < 4 ? 1 : width / 4;
    if (request.space == SHARED) tally.taken += scale * wavefronts(request, words);
    uint64_t* const end = request.address + request.lanes;
    std::sort(request.address, end);
    const unsigned distinct = std::unique(request.address, end) - request.address;
    if (request.space == SHARED) {
      tally.least += scale * std::max((distinct * width + 127) / 128, request.kind == READ ? (words + 1) / 2 : 1);
      return;
    }
    tally.least += scale * ((distinct * width + 31) / 32);
    uint64_t last_sector = 0, last_line = 0;
    for (unsigned i = 0; i < distinct; i++) {
      const uint64_t address = request.address[i];
      for (uint64_t sector = address / 32; sector <= (address + width - 1) / 32; sector++) {
        if (sector == last_sector) continue;
        last_sector = sector;
        tally.taken += scale;
        if (request.kind != READ || fetch(sector)) tally.from_l2 += scale;
        if (sector / 4 != last_line) tally.lines += scale;
        last_line = sector / 4;
      }
    }
  }

  // Whether every lane reads what its neighbour does, if that one reads at all.
  static bool paired(const Request& request, unsigned apart) {
    uint64_t of[32] = {};
    for (unsigned i = 0; i < request.lanes; i++) of[request.lane[i]] = request.address[i];
    for (unsigned lane = 0; lane < 32; lane++)
      if (of[lane] && of[lane ^ apart] && of[lane] != of[lane ^ apart]) return false;
    return true;
  }

  static unsigned wavefronts(const Request& request, unsigned words) {
    const bool twice = words > 1 && request.kind == READ && (paired(request, 1) || paired(request, 2));
    const unsigned at_once = 32 / words * (twice ? 2 : 1);
    unsigned total = 0;
    for (unsigned next = at_once, i = 0; next <= 32; next += at_once) {
      uint64_t seen[32][32];
      unsigned count[32] = {}, busiest = 0;
      for (; i < request.lanes && request.lane[i] < next; i++) {
        for (unsigned word = 0; word < words; word++) {
          const uint64_t address = request.address[i] / 4 + word;
          const unsigned bank = address % 32;
          uint64_t* const end = seen[bank] + count[bank];
          if (std::find(seen[bank], end, address) != end) continue;
          *end = address;
          busiest = std::max(busiest, ++count[bank]);
        }
      }
      total += busiest;
    }
    return total;
  }

  // Whether the sector has to be fetched; it is there afterwards.
  bool fetch(uint64_t sector) {
    const uint64_t line = sector / 4;
    const unsigned bit = 1u << sector % 4;
    auto found = cached.find(line);
    if (found == cached.end()) {
      if (cached.size() >= l1_lines && !recent.empty()) {
        cached.erase(recent.back());
        recent.pop_back();
      }
      recent.push_front(line);
      cached[line] = {recent.begin(), bit};
      return true;
    }
    recent.splice(recent.begin(), recent, found->second.first);
    const bool missing = !(found->second.second & bit);
    found->second.second |= bit;
    return missing;
  }
};

}  // namespace emulator
