// Prints the first of its arguments, instruction sets from wide to narrow, that this machine runs.
#include <cstdio>

#include "cpu/runs_here.h"

int main(int count, char** isas) {
    for (int i = 1; i < count; ++i) {
        if (!simmim::runs_here(isas[i])) continue;
        std::printf("%s", isas[i]);
        return 0;
    }
    return 1;
}
